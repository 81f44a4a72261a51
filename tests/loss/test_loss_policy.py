"""PPO: KL estimators against the exact KL, invariances of the clipped losses, padding, controllers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.loss import lm, policy


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _two_distributions(size=6, scale=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(2, size, generator=g, dtype=torch.float64)).log_softmax(-1)


def _exact_kl(p, q):
    return (p.exp() * (p - q)).sum()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 2.0))
def test_k1_and_k3_are_unbiased_and_abs_lies_above(seed, scale):
    p, q = _two_distributions(scale=scale, seed=seed)
    mean = {kind: (p.exp() * policy.kl_estimate(p, q, kind)).sum().item() for kind in ("k1", "k3", "abs")}
    exact = _exact_kl(p, q).item()
    assert mean["k1"] == pytest.approx(exact, abs=1e-10) and mean["k3"] == pytest.approx(exact, abs=1e-10)
    assert mean["abs"] >= exact - 1e-12
    assert (policy.kl_estimate(p, q, "k3") >= 0).all()


def test_k2_agrees_to_second_order():
    """Near the reference k2's bias is of third order: halving the distance must cut it by about eight."""
    bias = []
    for scale in (0.1, 0.05):
        p, q = _two_distributions(scale=scale)
        bias.append(((p.exp() * policy.kl_estimate(p, q, "k2")).sum() - _exact_kl(p, q)).abs().item())
    assert 5 < bias[0] / bias[1] < 12


def test_monte_carlo_means_and_variances():
    p, q = _two_distributions(scale=0.4)
    g = torch.Generator().manual_seed(1)
    drawn = torch.multinomial(p.exp(), 200_000, replacement=True, generator=g)
    var = {}
    for kind in ("k1", "k3"):
        sample = policy.kl_estimate(p[drawn], q[drawn], kind)
        error = 4 * sample.std().item() / math.sqrt(len(sample))
        assert abs(sample.mean().item() - _exact_kl(p, q).item()) < error
        var[kind] = sample.var().item()
    assert var["k3"] < var["k1"]


def test_gradients_of_the_estimators_as_losses():
    """What the docstring warns of: on own samples k1 has no mean gradient, k2 that of KL(pi||ref), k3 the reverse's."""
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    q = torch.randn(5, dtype=torch.float64).log_softmax(-1)
    p = logits.log_softmax(-1)

    def gradient(value):
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    on_policy = {k: gradient((p.detach().exp() * policy.kl_estimate(p, q, k)).sum()) for k in ("k1", "k2", "k3")}
    assert torch.allclose(on_policy["k1"], torch.zeros_like(logits), atol=1e-12)
    assert torch.allclose(on_policy["k2"], gradient(_exact_kl(p, q)))
    assert torch.allclose(on_policy["k3"], gradient(_exact_kl(q, p)))


def test_kl_is_exactly_zero_at_the_reference():
    logp = torch.randn(3, 4)
    for kind in ("k1", "k2", "k3", "abs"):
        assert not policy.kl_estimate(logp, logp.clone(), kind).any()
    with pytest.raises(ValueError, match="k9"):
        policy.kl_estimate(logp, logp, "k9")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=4), st.floats(0, 1), st.floats(0, 1), st.integers(0, 999))
def test_gae_equals_double_loop_over_the_real_tokens(lengths, gamma, lam, seed):
    g = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, len(lengths), 6, generator=g, dtype=torch.float64)
    mask = torch.arange(6)[None] < torch.tensor(lengths)[:, None]
    rewards, values = rewards.masked_fill(~mask, math.nan), values.masked_fill(~mask, math.nan)
    advantages, returns = policy.gae(rewards, values, mask, gamma, lam)
    for b, n in enumerate(lengths):
        v = [*values[b, :n].tolist(), 0.0]
        delta = [rewards[b, t].item() + gamma * v[t + 1] - v[t] for t in range(n)]
        for t in range(6):
            want = sum((gamma * lam) ** (u - t) * delta[u] for u in range(t, n)) if t < n else 0.0
            assert advantages[b, t].item() == pytest.approx(want, abs=1e-9)
            assert returns[b, t].item() == pytest.approx(want + v[t] if t < n else 0.0, abs=1e-9)


def test_gae_limits():
    rewards, values, mask = torch.randn(2, 5), torch.randn(2, 5), torch.ones(2, 5)
    _, returns = policy.gae(rewards, values, mask, 1.0, 1.0)  # lambda 1: the return is the reward to go
    assert torch.allclose(returns, rewards.flip(1).cumsum(1).flip(1), atol=1e-5)
    advantages, _ = policy.gae(rewards, values, mask, 1.0, 0.0)  # lambda 0: the one-step error
    following = torch.cat([values[:, 1:], torch.zeros(2, 1)], 1)
    assert torch.allclose(advantages, rewards + following - values)


def test_gae_steps_over_tokens_that_are_not_the_policys():
    rewards, values = torch.randn(2, 1, 6)
    where = torch.tensor([0, 1, 4, 5])
    mask = torch.tensor([[1, 1, 0, 0, 1, 1]])
    gaps, _ = policy.gae(rewards, values, mask, 0.9, 0.8)
    dense, _ = policy.gae(rewards[:, where], values[:, where], torch.ones(1, 4), 0.9, 0.8)
    assert torch.equal(gaps[:, where], dense) and not gaps[:, 2:4].any()


def test_rewards_put_the_score_on_the_last_real_token():
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 1, 1], [0, 0, 0]])
    kl = torch.full((4, 3), 2.0).masked_fill(mask == 0, math.nan)
    got = policy.per_token_rewards(torch.tensor([1.0, 2.0, 3.0, 4.0]), kl, mask, 0.05)
    want = torch.tensor([[-0.1, -0.1, 0.9], [1.9, 0.0, 0.0], [0.0, -0.1, 2.9], [0.0, 0.0, 0.0]])
    assert torch.allclose(got, want)


def _ppo_batch(seed=0):
    g = torch.Generator().manual_seed(seed)
    logp, old, advantages = torch.randn(3, 3, 5, generator=g, dtype=torch.float64) * 0.3
    mask = torch.arange(5)[None] < torch.tensor([[5], [2], [1]])
    return logp, old, advantages, mask


def test_policy_loss_against_enumeration():
    logp, old, advantages, mask = _ppo_batch()
    loss, metrics = policy.policy_loss(logp, old, advantages, mask, clip=0.2)
    terms, ratios, clipped = [], [], 0
    for b, t in mask.nonzero().tolist():
        ratio, a = math.exp(logp[b, t] - old[b, t]), advantages[b, t].item()
        kept = min(max(ratio, 0.8), 1.2)
        terms.append(-min(ratio * a, kept * a))
        clipped += kept * a < ratio * a
        ratios.append(ratio)
    n = len(terms)
    assert loss.item() == pytest.approx(sum(terms) / n)
    assert metrics["ratio_mean"].item() == pytest.approx(sum(ratios) / n)
    assert metrics["ratio_max_dev"].item() == pytest.approx(max(abs(r - 1) for r in ratios))
    assert metrics["clip_fraction"].item() == pytest.approx(clipped / n) and 0 < clipped < n
    assert metrics["approx_kl"].item() == pytest.approx(sum(r - 1 - math.log(r) for r in ratios) / n)


def test_ratio_deviation_counts_falling_ratios_too():
    logp = torch.tensor([[-0.5, 0.1]])
    _, metrics = policy.policy_loss(logp, torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 2))
    assert metrics["ratio_max_dev"].item() == pytest.approx(1 - math.exp(-0.5))


def test_clipped_tokens_have_no_gradient_and_the_others_the_ratios():
    old = torch.zeros(1, 4, dtype=torch.float64)
    logp = torch.tensor([[0.5, -0.5, 0.5, -0.5]], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([[1.0, -1.0, -1.0, 1.0]], dtype=torch.float64)  # clipped, clipped, free, free
    policy.policy_loss(logp, old, advantages, torch.ones(1, 4), 0.2)[0].backward()
    want = torch.tensor([[0.0, 0.0, math.exp(0.5), -math.exp(-0.5)]], dtype=torch.float64) / 4
    assert torch.allclose(logp.grad, want)


def test_denominator_makes_micro_batches_add_up_to_the_minibatch():
    logp, old, advantages, mask = _ppo_batch()
    returns = torch.randn_like(logp)
    whole_p = policy.policy_loss(logp, old, advantages, mask)[0]
    whole_v = policy.value_loss(logp, old, returns, mask)[0]
    n = mask.sum()
    parts_p = sum(policy.policy_loss(*(x[i : i + 1] for x in (logp, old, advantages, mask)), denominator=n)[0]
                  for i in range(3))
    parts_v = sum(policy.value_loss(*(x[i : i + 1] for x in (logp, old, returns, mask)), denominator=n)[0]
                  for i in range(3))
    assert torch.allclose(whole_p, parts_p) and torch.allclose(whole_v, parts_v)


@pytest.mark.parametrize("junk", [math.nan, math.inf, -1e30])
def test_padding_reaches_neither_losses_metrics_nor_gradients(junk):
    logp, old, other, mask = _ppo_batch()
    for loss in (policy.policy_loss, policy.value_loss):
        outcomes = []
        for fill in (0.0, junk):
            live = logp.masked_fill(~mask, fill).requires_grad_()
            total, metrics = loss(live, old.masked_fill(~mask, fill), other.masked_fill(~mask, fill), mask)
            total.backward()
            outcomes.append([total.detach(), live.grad, *metrics.values()])
            assert not any(m.requires_grad for m in metrics.values())
        assert all(torch.equal(a, b) for a, b in zip(*outcomes))


def test_longer_padding_changes_nothing():
    logp, old, advantages, mask = _ppo_batch()

    def wider(x):
        return torch.cat([x, torch.ones(3, 4).to(x.dtype) * (x.dtype != torch.bool)], 1)

    a, b = (policy.policy_loss(*xs) for xs in ((logp, old, advantages, mask),
                                               (wider(logp), wider(old), wider(advantages), wider(mask).bool())))
    assert torch.allclose(a[0], b[0]) and all(torch.allclose(a[1][k], b[1][k]) for k in a[1])


def test_an_empty_minibatch_costs_nothing():
    x, mask = torch.randn(2, 3, requires_grad=True), torch.zeros(2, 3)
    for loss, _ in (policy.policy_loss(x, x.detach(), x.detach(), mask), policy.value_loss(x, x.detach(), x, mask)):
        (grad,) = torch.autograd.grad(loss, x)
        assert loss == 0 and not grad.any()


def test_first_minibatch_gradient_is_reinforce():
    """At ratio 1 the PPO gradient is that of -A log pi, whatever the clip range; every metric is exactly 0 or 1."""
    logits = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    tokens, advantages = torch.randint(6, (2, 5)), torch.randn(2, 4, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    logp = lm.token_logprobs(logits, tokens, temperature=0.7)
    (want,) = torch.autograd.grad(-(advantages * logp * mask).sum() / 6, logits, retain_graph=True)
    for clip in (0.0, 0.2):
        loss, metrics = policy.policy_loss(logp, logp.detach(), advantages, mask, clip)
        if clip:
            assert torch.allclose(torch.autograd.grad(loss, logits, retain_graph=True)[0], want)
        assert metrics.pop("ratio_mean") == 1
        assert set(metrics) == {"ratio_max_dev", "clip_fraction", "approx_kl"} and not any(metrics.values())


def test_value_loss_against_enumeration_and_gradcheck():
    values, old, returns, mask = _ppo_batch(3)
    loss, metrics = policy.value_loss(values, old, returns, mask, clip=0.1)
    terms, clipped = [], 0
    for b, t in mask.nonzero().tolist():
        v, o, r = (x[b, t].item() for x in (values, old, returns))
        near = o + min(max(v - o, -0.1), 0.1)
        terms.append(0.5 * max((v - r) ** 2, (near - r) ** 2))
        clipped += (near - r) ** 2 > (v - r) ** 2
    assert loss.item() == pytest.approx(sum(terms) / len(terms))
    assert metrics["value_clip_fraction"].item() == pytest.approx(clipped / len(terms))
    values.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: policy.value_loss(v, old, returns, mask, 0.1)[0], values)
    assert torch.autograd.gradcheck(lambda v: policy.policy_loss(v, old, returns, mask, 0.2)[0], values)


def test_explained_variance():
    returns, mask = torch.randn(2, 4), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    assert policy.explained_variance(returns, returns, mask) == 1
    assert policy.explained_variance(returns + 3, returns, mask).item() == pytest.approx(1.0, abs=1e-5)
    assert policy.explained_variance(torch.zeros(2, 4), returns, mask).item() == pytest.approx(0.0, abs=1e-6)
    assert policy.explained_variance(-returns, returns, mask).item() == pytest.approx(-3.0, abs=1e-5)
    assert policy.explained_variance(returns, torch.ones(2, 4), mask) == 0
    dirty = returns.masked_fill(mask == 0, math.nan)
    assert policy.explained_variance(dirty, dirty, mask) == 1


def test_adaptive_kl_moves_towards_the_target_and_resumes():
    control = policy.AdaptiveKL(0.1, target=6.0, horizon=1000)
    assert control.update(6.0, 64) == 0.1
    assert control.update(60.0, 100) == pytest.approx(0.1 * (1 + 0.2 * 0.1))  # the error is clipped at 0.2
    assert control.update(0.0, 100) == pytest.approx(0.1 * 1.02 * 0.98)
    assert control.update(6.6, 100) == pytest.approx(0.1 * 1.02 * 0.98 * 1.01)
    before = control.coef
    assert control.update(math.nan, 100) == before and control.update(0.0, 10**9) == 0.0
    control.coef = before
    resumed = policy.AdaptiveKL(0.5, target=6.0, horizon=1000)
    resumed.load_state_dict(control.state_dict())
    assert resumed.update(9.0, 64) == control.update(9.0, 64)
    with pytest.raises(ValueError):
        policy.AdaptiveKL(0.1, target=0.0, horizon=1000)


def test_fixed_kl_does_not_move():
    control = policy.FixedKL(0.02)
    assert control.update(100.0, 64) == 0.02
    other = policy.FixedKL(1.0)
    other.load_state_dict(control.state_dict())
    assert other.coef == 0.02


def test_group_advantages():
    scores = torch.randn(4, 6, dtype=torch.float64)
    rloo = policy.group_advantages(scores, "rloo")
    for p in range(4):
        for k in range(6):
            others = [scores[p, j].item() for j in range(6) if j != k]
            assert rloo[p, k].item() == pytest.approx(scores[p, k].item() - sum(others) / 5)
    grpo = policy.group_advantages(scores)
    assert torch.allclose(grpo.mean(1), torch.zeros(4, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(grpo.std(1), torch.ones(4, dtype=torch.float64), atol=1e-4)
    assert torch.allclose(grpo, policy.group_advantages(3 * scores + 7), atol=1e-4)
    for k in range(2, 17):  # where the mean of equal numbers rounds, the noise must not be blown up
        assert not policy.group_advantages(torch.full((1, k), 100.1)).any()
    with pytest.raises(ValueError):
        policy.group_advantages(scores[:, :1])
    with pytest.raises(ValueError):
        policy.group_advantages(scores, "ppo")
