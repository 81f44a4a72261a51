"""K-wise, soft pair and DPO losses: enumeration, invariances, ties, padding, gradients."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.loss import preference as pref


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _enumerate(scores, ranks, weights, smoothing, margin):
    """InstructGPT eq. 1 pair by pair, in plain Python."""
    total = share = right = 0.0
    for s, r, w in zip(scores, ranks, weights):
        pairs = [(i, j) for i, j in itertools.permutations(range(len(r)), 2) if 0 <= r[i] < r[j]]
        if not pairs:
            continue
        terms = [(1 - smoothing) * _softplus(-(s[i] - s[j] - margin)) + smoothing * _softplus(s[i] - s[j] - margin)
                 for i, j in pairs]
        total += w * sum(terms) / len(pairs)
        right += w * sum(1.0 if s[i] > s[j] else 0.5 if s[i] == s[j] else 0.0 for i, j in pairs) / len(pairs)
        share += w
    return (total / share, right / share) if share else (0.0, 0.0)


prompts = st.integers(1, 5).flatmap(lambda k: st.lists(
    st.tuples(
        st.lists(st.floats(-20, 20).map(lambda x: round(x, 1)), min_size=k, max_size=k),
        st.lists(st.integers(-1, 3), min_size=k, max_size=k),
        st.floats(0.1, 3),
    ), min_size=1, max_size=4))


@settings(max_examples=80, deadline=None)
@given(prompts, st.sampled_from([0.0, 0.1]), st.sampled_from([0.0, 0.5]))
def test_kwise_equals_enumeration(rows, smoothing, margin):
    scores, ranks, weights = ([r[i] for r in rows] for i in range(3))
    want, right = _enumerate(scores, ranks, weights, smoothing, margin)
    ranks_PK = torch.tensor(ranks)
    loss, metrics = pref.kwise_loss(
        torch.tensor(scores, dtype=torch.float64), ranks_PK, ranks_PK >= 0,
        torch.tensor(weights, dtype=torch.float64), smoothing, margin)
    assert loss.item() == pytest.approx(want, rel=1e-9, abs=1e-12)
    assert metrics["accuracy"].item() == pytest.approx(right, abs=1e-9)


def test_kwise_of_two_is_the_pair_loss_and_of_nine_has_36_pairs():
    scores = torch.tensor([[0.3, -0.9]])
    loss, _ = pref.kwise_loss(scores, torch.tensor([[0, 1]]), torch.ones(1, 2))
    assert loss.item() == pytest.approx(-F.logsigmoid(torch.tensor(1.2)).item())
    _, metrics = pref.kwise_loss(torch.randn(1, 9), torch.arange(9)[None], torch.ones(1, 9))
    assert metrics["pairs"] == 36 and metrics["prompts"] == 1


def test_kwise_gradcheck_and_fresh_scores_cost_log_two():
    ranks = torch.tensor([[0, 1, 1, 2], [1, 0, -1, -1], [0, -1, -1, -1]])
    scores = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: pref.kwise_loss(s, ranks, ranks >= 0, label_smoothing=0.1)[0], scores)
    loss, metrics = pref.kwise_loss(torch.zeros(3, 4), ranks, ranks >= 0)
    assert loss.item() == pytest.approx(math.log(2)) and metrics["accuracy"] == 0.5


def test_kwise_depends_on_differences_within_a_prompt_only():
    ranks = torch.tensor([[2, 0, 1], [0, 1, 1]])
    mask, scores = torch.ones(2, 3), torch.randn(2, 3, dtype=torch.float64)
    loss, _ = pref.kwise_loss(scores, ranks, mask)
    assert torch.allclose(loss, pref.kwise_loss(scores + torch.tensor([[5.0], [-3.0]]), ranks, mask)[0])
    assert torch.allclose(loss, pref.kwise_loss(scores, ranks * 7 + 1, mask)[0])  # only the order of ranks counts
    shuffle = torch.tensor([1, 2, 0])
    assert torch.allclose(loss, pref.kwise_loss(scores[:, shuffle], ranks[:, shuffle], mask)[0])


def test_kwise_padding_changes_nothing_even_if_it_holds_nan():
    ranks, scores = torch.tensor([[0, 1, 2]]), torch.randn(1, 3, requires_grad=True)
    loss, _ = pref.kwise_loss(scores, ranks, torch.ones(1, 3))
    wide = torch.cat([scores, torch.full((1, 2), math.nan)], 1)
    for wide_ranks, mask in (
        (torch.tensor([[0, 1, 2, -1, -1]]), torch.ones(1, 5)),
        (torch.tensor([[0, 1, 2, 0, 9]]), torch.tensor([[1, 1, 1, 0, 0]])),
    ):
        padded, metrics = pref.kwise_loss(wide, wide_ranks, mask)
        assert torch.equal(padded, loss) and metrics["pairs"] == 3
        (grad,) = torch.autograd.grad(padded, scores, retain_graph=True)
        assert torch.allclose(grad, torch.autograd.grad(loss, scores, retain_graph=True)[0])


def test_kwise_without_pairs_is_zero_with_zero_gradient():
    scores = torch.randn(2, 3, requires_grad=True)
    loss, metrics = pref.kwise_loss(scores, torch.tensor([[0, 0, 0], [0, -1, -1]]), torch.ones(2, 3))
    loss.backward()
    assert loss == 0 and metrics["prompts"] == 0 and not scores.grad.any()


def test_kwise_prompts_sum_over_micro_batches():
    """loss * metrics["prompts"] adds up to the whole batch's, so accumulation can divide by the global count."""
    ranks = torch.tensor([[0, 1, 2], [0, 0, 0], [1, 0, -1]])
    scores = torch.randn(3, 3, dtype=torch.float64)
    whole, metrics = pref.kwise_loss(scores, ranks, ranks >= 0)
    parts = [pref.kwise_loss(scores[i : i + 1], ranks[i : i + 1], ranks[i : i + 1] >= 0) for i in range(3)]
    assert torch.allclose(whole * metrics["prompts"], sum(loss * m["prompts"] for loss, m in parts))


def test_kwise_margin_may_differ_per_pair_and_extreme_scores_stay_finite():
    scores, ranks = torch.tensor([[1.0, 0.0]]), torch.tensor([[0, 1]])
    margin = torch.zeros(1, 2, 2)
    margin[0, 0, 1] = 0.4
    loss, _ = pref.kwise_loss(scores, ranks, torch.ones(1, 2), margin=margin)
    assert loss.item() == pytest.approx(_softplus(-0.6))
    loss, _ = pref.kwise_loss(torch.tensor([[-1e4, 1e4]]), ranks, torch.ones(1, 2))
    assert loss.item() == pytest.approx(2e4)
    with pytest.raises(ValueError):
        pref.kwise_loss(scores, ranks[:, :1], torch.ones(1, 2))


def test_soft_pairs_minimum_and_hard_limit():
    a = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    p = torch.tensor([0.8])
    log_odds = torch.tensor([math.log(4.0)], dtype=torch.float64)
    (grad,) = torch.autograd.grad(pref.soft_pair_loss(a + log_odds, a.detach(), p), a)
    assert abs(grad.item()) < 1e-7  # the loss is least where sigmoid(difference) is the label
    s, t = torch.randn(5), torch.randn(5)
    assert torch.allclose(pref.soft_pair_loss(s, t, torch.ones(5)), -F.logsigmoid(s - t).mean())
    assert torch.allclose(pref.soft_pair_loss(s, t, torch.full((5,), 0.3)),
                          pref.soft_pair_loss(t, s, torch.full((5,), 0.7)))


def test_pair_accuracy_counts_ties_half():
    assert pref.pair_accuracy(torch.tensor([1.0, 0.0, 2.0, 0.0]), torch.tensor([0.0, 1.0, 2.0, -1.0])) == 0.625


def test_dpo_starts_at_log_two_and_smoothing_is_the_flipped_mixture():
    logp = torch.randn(4, 6, dtype=torch.float64)
    loss, metrics = pref.dpo_loss(logp[0], logp[1], logp[0], logp[1])
    assert loss.item() == pytest.approx(math.log(2)) and metrics["accuracy"] == 0.5 and metrics["margin"] == 0
    straight = pref.dpo_loss(*logp, beta=0.3)[0]
    flipped = pref.dpo_loss(logp[1], logp[0], logp[3], logp[2], beta=0.3)[0]
    assert torch.allclose(pref.dpo_loss(*logp, beta=0.3, label_smoothing=0.2)[0], 0.8 * straight + 0.2 * flipped)
    chosen = logp[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda c: pref.dpo_loss(c, *logp[1:], label_smoothing=0.1)[0], chosen)
    assert not any(m.requires_grad for m in pref.dpo_loss(chosen, *logp[1:])[1].values())
