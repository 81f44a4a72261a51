"""Each loss against a brute-force computation."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from tutelage.loss import lm, policy, preference

torch.manual_seed(0)


def test_token_logprobs_match_log_softmax():
    logits, tokens = torch.randn(3, 5, 7), torch.randint(7, (3, 5))
    want = (logits / 0.7).log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    assert torch.allclose(lm.token_logprobs(logits, tokens, 0.7), want, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunked_cross_entropy_value_and_gradients(chunk):
    labels = torch.randint(11, (2, 6))
    labels[0, :3] = -100
    grads = []
    for fused in (True, False):
        g = torch.Generator().manual_seed(1)
        h = torch.randn(2, 6, 4, generator=g, dtype=torch.float64, requires_grad=True)
        w = torch.randn(11, 4, generator=g, dtype=torch.float64, requires_grad=True)
        out = lm.chunked_linear_cross_entropy(h, w, labels, chunk) if fused else lm.cross_entropy_sum(h @ w.T, labels)
        out[0].backward()
        grads.append((out[0].detach(), out[1], h.grad, w.grad))
    for a, b in zip(*grads):
        assert torch.allclose(a, b)


def test_gae_against_double_loop():
    B, T, gamma, lam = 4, 6, 0.9, 0.8
    r, v = torch.randn(B, T), torch.randn(B, T)
    lengths = [6, 3, 1, 0]
    mask = torch.tensor([[t < n for t in range(T)] for n in lengths])
    r[~mask], v[~mask] = float("nan"), float("inf")
    adv, ret = policy.gae(r, v, mask, gamma, lam)
    for b, n in enumerate(lengths):
        for t in range(T):
            want = 0.0
            for u in range(t, n):
                nxt = v[b, u + 1].item() if u + 1 < n else 0.0
                want += (gamma * lam) ** (u - t) * (r[b, u].item() + gamma * nxt - v[b, u].item())
            assert adv[b, t].item() == pytest.approx(want, abs=1e-5)
            assert ret[b, t].item() == pytest.approx(want + v[b, t].item() if t < n else 0.0, abs=1e-5)


def test_kl_estimators_exact_expectation():
    p, q = torch.randn(2, 6, dtype=torch.float64).log_softmax(-1)
    exact = (p.exp() * (p - q)).sum()
    for kind in ("k1", "k3"):
        assert torch.allclose((p.exp() * policy.kl_estimate(p, q, kind)).sum(), exact)
    assert (policy.kl_estimate(p, q, "k3") >= 0).all()


def test_kwise_against_enumeration():
    scores = torch.randn(3, 4)
    ranks = torch.tensor([[0, 1, 2, 3], [1, 0, 0, -1], [0, 0, -1, -1]])
    losses = []
    for s, r in zip(scores.tolist(), ranks.tolist()):
        terms = [-math.log(1 / (1 + math.exp(s[j] - s[i]))) for i, j in itertools.permutations(range(4), 2)
                 if 0 <= r[i] < r[j]]
        if terms:
            losses.append(sum(terms) / len(terms))
    loss, metrics = preference.kwise_loss(scores, ranks, ranks >= 0)
    assert loss.item() == pytest.approx(sum(losses) / 2, abs=1e-6)
    assert metrics["pairs"] == 8 and metrics["prompts"] == 2


def test_ratio_one_is_reinforce():
    logits = torch.randn(2, 4, 5, requires_grad=True)
    tokens, adv = torch.randint(5, (2, 4)), torch.randn(2, 3)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    logp = lm.token_logprobs(logits, tokens)
    loss, m = policy.policy_loss(logp, logp.detach(), adv, mask)
    (got,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (want,) = torch.autograd.grad(-(logp * adv * mask).sum() / 4, logits)
    assert torch.allclose(got, want)
    assert m["ratio_max_dev"] == 0 and m["approx_kl"] == 0 and m["clip_fraction"] == 0


def test_rewards_value_loss_and_groups():
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    got = policy.per_token_rewards(torch.tensor([2.0, 5.0]), torch.ones(2, 3), mask, 0.1)
    assert torch.allclose(got, torch.tensor([[-0.1, 1.9, 0.0], [0.0, 0.0, 0.0]]))
    loss, _ = policy.value_loss(torch.tensor([[1.0, 9.0]]), torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]),
                                torch.tensor([[1, 0]]))
    assert loss.item() == pytest.approx(0.5 * 0.8**2)
    s = torch.tensor([[1.0, 2.0, 6.0]])
    assert torch.allclose(policy.group_advantages(s, "rloo"), torch.tensor([[-3.0, -1.5, 4.5]]))


def test_dpo_and_soft_pairs():
    loss, m = preference.dpo_loss(*torch.tensor([[1.0], [0.0], [0.5], [0.5]]), beta=0.5)
    assert loss.item() == pytest.approx(-F.logsigmoid(torch.tensor(0.5)).item()) and m["accuracy"] == 1
    half = preference.soft_pair_loss(torch.zeros(2), torch.zeros(2), torch.tensor([0.5, 0.5]))
    assert half.item() == pytest.approx(math.log(2))
