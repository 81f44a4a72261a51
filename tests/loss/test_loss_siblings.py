"""DPO, IPO, KTO, GRPO and RLOO against their closed forms, written out answer by answer and token by token."""

import itertools
import math

import pytest
import torch

from tutelage.loss import policy
from tutelage.loss import preference as pref
from tutelage.train.grpo import GroupConfig, group_loss


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def doubles(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("smoothing", [0.0, 0.15])
@pytest.mark.parametrize("soft", [False, True])
def test_dpo_and_its_gradient_against_the_paper(smoothing, soft):
    """Rafailov et al. 2023, eq. 7, and the gradient below it: -beta * sigmoid(r_l - r_w) on the chosen log-prob."""
    logp, beta = doubles(4, 6), 0.3
    p = torch.rand(6, dtype=torch.float64) if soft else None
    chosen = logp[0].clone().requires_grad_()
    loss, metrics = pref.dpo_loss(chosen, *logp[1:], beta, smoothing, p)
    total, want = 0.0, []
    for i in range(6):
        w, l_, rw, rl = (logp[k, i].item() for k in range(4))
        margin = beta * ((w - rw) - (l_ - rl))
        share = (p[i].item() if soft else 1.0) * (1 - smoothing) + (1 - (p[i].item() if soft else 1.0)) * smoothing
        total += -share * math.log(sigmoid(margin)) - (1 - share) * math.log(sigmoid(-margin))
        want.append(beta * ((1 - share) * sigmoid(margin) - share * sigmoid(-margin)) / 6)
    assert loss.item() == pytest.approx(total / 6, rel=1e-12)
    (grad,) = torch.autograd.grad(loss, chosen)
    assert torch.allclose(grad, torch.tensor(want, dtype=torch.float64), atol=1e-14)
    margins = [beta * (logp[0, i] - logp[2, i] - logp[1, i] + logp[3, i]).item() for i in range(6)]
    assert metrics["margin"].item() == pytest.approx(sum(margins) / 6)
    assert metrics["accuracy"].item() == pytest.approx(sum(m > 0 for m in margins) / 6)


def test_ipo_draws_the_gap_to_its_target_and_dpo_has_none():
    """Azar et al. 2023, eq. 17: the loss is 0 exactly where the log ratios' gap is 1 / (2 beta)."""
    logp, beta = doubles(4, 5, seed=1), 0.2
    loss, _ = pref.ipo_loss(*logp, beta)
    gaps = [(logp[0, i] - logp[2, i] - logp[1, i] + logp[3, i]).item() for i in range(5)]
    assert loss.item() == pytest.approx(sum((g - 2.5) ** 2 for g in gaps) / 5)
    at = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(3, dtype=torch.float64)
    for function, still in ((pref.ipo_loss, True), (pref.dpo_loss, False)):
        loss, _ = function(at + 2.5, zero, zero, zero, beta)
        (grad,) = torch.autograd.grad(loss, at)
        assert (grad.abs().max() < 1e-12) == still
    soft, _ = pref.ipo_loss(*logp, beta, p_chosen=torch.full((5,), 0.7, dtype=torch.float64))
    flipped, _ = pref.ipo_loss(logp[1], logp[0], logp[3], logp[2], beta)
    straight, _ = pref.ipo_loss(*logp, beta)
    assert torch.allclose(soft, 0.7 * straight + 0.3 * flipped)


@pytest.mark.parametrize("pair", ["dpo", "ipo"])
def test_all_pairs_of_a_ranking_are_the_pairs_one_by_one(pair):
    """kwise_loss on log ratios is the mean over prompts of the mean over their pairs."""
    ratio, beta = doubles(3, 4, seed=2), 0.4
    ranks = torch.tensor([[0, 1, 2, 3], [1, 0, 1, -1], [0, 0, 0, 0]])
    scores, link = (beta * ratio, pref.logistic) if pair == "dpo" else (ratio, pref.squared(beta))
    loss, metrics = pref.kwise_loss(scores, ranks, ranks >= 0, pair=link)
    function = pref.dpo_loss if pair == "dpo" else pref.ipo_loss
    prompts = []
    for p in range(3):
        each = [
            function(ratio[p, i : i + 1], ratio[p, j : j + 1], *torch.zeros(2, 1, dtype=torch.float64), beta)[0].item()
            for i, j in itertools.permutations(range(4), 2)
            if 0 <= ranks[p, i] < ranks[p, j]
        ]
        if each:
            prompts.append(sum(each) / len(each))
    assert metrics["prompts"] == len(prompts) == 2 and loss.item() == pytest.approx(sum(prompts) / 2)


def test_kto_against_the_paper():
    """Ethayarajh et al. 2024, eq. 8: lambda_y - v(x, y), with the reference point held still."""
    policy_B, ref = doubles(2, 6, seed=3)
    up = torch.tensor([True, False, True, True, False, False])
    kl = pref.kto_reference(doubles(6, seed=4), doubles(6, seed=5))
    raw = (doubles(6, seed=4) - doubles(6, seed=5)).mean().item()
    assert kl.item() == pytest.approx(max(0.0, raw)) and pref.kto_reference(-torch.ones(2), torch.ones(2)) == 0
    x = policy_B.clone().requires_grad_()
    loss, metrics = pref.kto_loss(x, ref, up, kl, 0.2, 1.0, 1.5)
    total, want = 0.0, []
    for i in range(6):
        side, weight = (1, 1.0) if up[i] else (-1, 1.5)
        value = sigmoid(side * 0.2 * (policy_B[i].item() - ref[i].item() - kl.item()))
        total += weight * (1 - value)
        want.append(-side * weight * 0.2 * value * (1 - value) / 6)
    assert loss.item() == pytest.approx(total / 6)
    (grad,) = torch.autograd.grad(loss, x)
    assert torch.allclose(grad, torch.tensor(want, dtype=torch.float64))
    ratios = policy_B - ref
    assert metrics["reward_desirable"].item() == pytest.approx(0.2 * ratios[up].mean().item())
    assert metrics["reward_undesirable"].item() == pytest.approx(0.2 * ratios[~up].mean().item())
    assert not kl.requires_grad


def group_case(seed=0):
    """Log-probs new, old and reference, advantages and mask of 4 answers of unlike length."""
    logp, old, ref = (doubles(4, 5, seed=seed + i) * 0.3 - 1 for i in range(3))
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 0, 0]]).float()
    return logp, old, ref, doubles(4, 1, seed=seed + 9), mask


@pytest.mark.parametrize("average", ["answers", "tokens", "constant"])
@pytest.mark.parametrize("clip_high", [None, 0.5])
def test_grpo_loss_token_by_token(average, clip_high):
    """Shao et al. 2024, eq. 3 with 4 (k3); Yu et al. 2025, eq. 8; Liu et al. 2025, listing 1."""
    logp, old, ref, advantages, mask = group_case()
    config = GroupConfig(average=average, clip=0.2, clip_high=clip_high, max_tokens=7)
    x = logp.clone().requires_grad_()
    loss, metrics = group_loss(x, old, ref, advantages, mask, config, beta=0.1)
    each, clipped = [], 0
    for b in range(4):
        terms = []
        for t in range(5):
            if mask[b, t]:
                ratio, a = math.exp(logp[b, t] - old[b, t]), advantages[b, 0].item()
                held = min(max(ratio, 0.8), 1 + (clip_high or 0.2))
                clipped += held * a < ratio * a
                d = (ref[b, t] - logp[b, t]).item()
                terms.append(-min(ratio * a, held * a) + 0.1 * (math.exp(d) - d - 1))
        each.append(terms)
    total = sum(map(sum, each))
    want = {
        "answers": sum(sum(t) / len(t) for t in each) / 4, "tokens": total / mask.sum().item(), "constant": total / 28,
    }  # fmt: skip
    assert loss.item() == pytest.approx(want[average], rel=1e-6)
    assert metrics["clip_fraction"].item() == pytest.approx(clipped / mask.sum().item())
    assert torch.autograd.gradcheck(
        lambda y: group_loss(y, old, ref, advantages, mask, config, beta=0.1)[0], x, atol=1e-4, rtol=1e-3
    )


def test_padding_of_a_group_reaches_neither_loss_nor_gradient():
    logp, old, ref, advantages, mask = group_case(5)
    for config in (GroupConfig(), GroupConfig(advantage="rloo", kl_in="loss"), GroupConfig(advantage="dr_grpo")):
        results = []
        for fill in (0.0, math.inf):
            x = logp.masked_fill(mask == 0, fill).requires_grad_()
            loss, _ = group_loss(
                x, old.masked_fill(mask == 0, -fill), ref.masked_fill(mask == 0, -fill), advantages, mask, config, 0.1
            )
            results.append((loss.detach(), torch.autograd.grad(loss, x)[0]))
        assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
        assert torch.isfinite(results[1][1]).all()


def test_rloo_at_ratio_one_is_reinforce_with_a_leave_one_out_baseline():
    """Ahmadian et al. 2024, eq. 8: 1/K sum of (R_i - mean of the others) grad log pi(y_i), whole answers."""
    logp, _, _, _, mask = group_case(7)
    scores = doubles(2, 2, seed=8)
    advantages = policy.group_advantages(scores, "rloo").reshape(-1, 1)
    x = logp.clone().requires_grad_()
    loss, metrics = group_loss(x, logp, logp, advantages, mask, GroupConfig(advantage="rloo"), beta=0.0)
    (grad,) = torch.autograd.grad(loss, x)
    for p, k in itertools.product(range(2), range(2)):
        a = scores[p, k].item() - scores[p, 1 - k].item()
        assert torch.allclose(grad[2 * p + k], -a * mask[2 * p + k].double() / 4)
    assert metrics["ratio_max_dev"] == 0


def test_the_answers_ratio_is_the_product_of_the_tokens():
    logp, old, ref, advantages, mask = group_case(3)
    config = GroupConfig(advantage="rloo", clip=0.3)
    loss, metrics = group_loss(logp, old, ref, advantages, mask, config, beta=0.0)
    total = deviation = 0.0
    for b in range(4):
        ratio = math.exp(((logp - old) * mask)[b].sum())
        a = advantages[b, 0].item()
        total -= min(ratio * a, min(max(ratio, 0.7), 1.3) * a)
        deviation = max(deviation, abs(ratio - 1))
    assert loss.item() == pytest.approx(total / 4) and metrics["ratio_max_dev"].item() == pytest.approx(deviation)


def test_dr_grpo_leaves_the_spread_and_equal_scores_teach_nothing():
    scores = doubles(3, 5, seed=11)
    a = policy.group_advantages(scores, "dr_grpo")
    assert torch.allclose(a, scores - scores.mean(1, keepdim=True))
    assert torch.allclose(policy.group_advantages(scores, "rloo"), a * 5 / 4)
    for mode in ("grpo", "dr_grpo", "rloo"):
        assert not policy.group_advantages(torch.full((2, 7), 0.1), mode).any()


def test_what_a_method_means_by_itself():
    assert GroupConfig().chosen() == ("loss", "k3", "token", "answers")
    assert GroupConfig(advantage="dr_grpo").chosen() == ("loss", "k3", "token", "constant")
    assert GroupConfig(advantage="rloo").chosen() == ("reward", "k1", "answer", "answers")
    assert GroupConfig(advantage="rloo", kl_in="loss").chosen()[:2] == ("loss", "k3")
    with pytest.raises(ValueError):
        policy.answer_weights(torch.ones(1, 1), "median", 3)


def test_the_corrected_kl_has_the_gradient_of_the_kl_and_k3_alone_has_not():
    """On a vocabulary that can be listed, as an expectation over the policy's own tokens at ratio 1."""
    logits, ref = doubles(1, 6, seed=20).requires_grad_(), doubles(1, 6, seed=21).log_softmax(1)
    logp = logits.log_softmax(1)
    p = logp.detach().exp()
    (want,) = torch.autograd.grad((logp.exp() * (logp - ref)).sum(), logits, retain_graph=True)
    found = {}
    for corrected in (False, True):
        config = GroupConfig(average="tokens", kl_corrected=corrected)
        total = 0.0
        for token in range(6):
            at = (logp[:, token : token + 1], logp[:, token : token + 1].detach(), ref[:, token : token + 1])
            loss, _ = group_loss(*at, torch.zeros(1, 1), torch.ones(1, 1), config, beta=1.0)
            total = total + p[0, token] * loss
        (found[corrected],) = torch.autograd.grad(total, logits, retain_graph=True)
    assert torch.allclose(found[True], want) and not torch.allclose(found[False], want, atol=1e-2)
