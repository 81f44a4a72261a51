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


shares = st.integers(2, 5).flatmap(lambda k: st.lists(
    st.tuples(
        st.lists(st.floats(-9, 9).map(lambda x: round(x, 1)), min_size=k, max_size=k),
        st.lists(st.sampled_from([None, 0.0, 0.2, 0.5, 0.75, 1.0]), min_size=k * k, max_size=k * k),
        st.integers(1, k),
    ), min_size=1, max_size=4))


def _table(k, flat, real):
    """[k][k] of shares: the entries above the diagonal are drawn, the others follow; None where nobody compared."""
    p = [[None] * k for _ in range(k)]
    for i, j in itertools.combinations(range(real), 2):
        if flat[i * k + j] is not None:
            p[i][j], p[j][i] = flat[i * k + j], 1 - flat[i * k + j]
    return p


@settings(max_examples=80, deadline=None)
@given(shares)
def test_kwise_soft_labels_equal_enumeration(rows):
    k = len(rows[0][0])
    scores = [r[0] for r in rows]
    tables = [_table(k, flat, real) for _, flat, real in rows]
    total = agreed = prompts = 0.0
    for s, p in zip(scores, tables):
        pairs = [(i, j) for i, j in itertools.combinations(range(k), 2) if p[i][j] is not None]
        if pairs:
            prompts += 1
            total += sum(
                p[i][j] * _softplus(s[j] - s[i]) + p[j][i] * _softplus(s[i] - s[j]) for i, j in pairs
            ) / len(pairs)
            right = [0.5 if s[i] == s[j] else p[i][j] if s[i] > s[j] else p[j][i] for i, j in pairs]
            agreed += sum(right) / len(right)
    mask = torch.tensor([[i < real for i in range(k)] for _, _, real in rows])
    p_better = torch.tensor([[[math.nan if x is None else x for x in line] for line in p] for p in tables],
                            dtype=torch.float64)
    loss, metrics = pref.kwise_loss(
        torch.tensor(scores, dtype=torch.float64), torch.where(mask, 0, -1), mask, p_better=p_better)
    assert metrics["prompts"] == prompts
    assert loss.item() == pytest.approx(total / max(1, prompts), rel=1e-9, abs=1e-12)
    assert metrics["accuracy"].item() == pytest.approx(agreed / max(1, prompts), abs=1e-9)


def test_kwise_soft_labels_of_one_and_zero_are_the_ranking_and_half_pulls_together():
    ranks = torch.tensor([[0, 1, 1, 2], [1, 0, -1, -1]])
    p = (ranks[:, :, None] < ranks[:, None, :]).double()
    p[ranks[:, :, None] == ranks[:, None, :]] = math.nan
    scores = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    hard, soft = (pref.kwise_loss(scores, ranks, ranks >= 0, p_better=x) for x in (None, p))
    assert torch.equal(hard[0], soft[0]) and hard[1] == soft[1]
    even = torch.full((1, 2, 2), 0.5, dtype=torch.float64)
    apart = torch.tensor([[1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    loss, _ = pref.kwise_loss(apart, torch.zeros(1, 2), torch.ones(1, 2), p_better=even)
    (grad,) = torch.autograd.grad(loss, apart)
    assert grad[0, 0] > 0 > grad[0, 1] and loss.item() == pytest.approx(
        pref.soft_pair_loss(apart[:, 0], apart[:, 1], even[:, 0, 1]).item())


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
