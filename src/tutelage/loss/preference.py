"""Preference losses: K-wise Bradley-Terry (InstructGPT eq. 1), soft pair labels, DPO, IPO, KTO."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.loss.lm import at_least_fp32

Metrics = dict[str, Tensor]
PairLoss = Callable[[Tensor], Tensor]
"""Loss of a pair as a function of how far the better answer scores above the other."""


def logistic(diff: Tensor) -> Tensor:
    """-log sigmoid(diff): Bradley-Terry; of log ratios times beta it is DPO (Rafailov et al. 2023, eq. 7)."""
    return -F.logsigmoid(diff)


def squared(beta: float) -> PairLoss:
    """(diff - 1 / (2 beta))^2: IPO on log ratios (Azar et al. 2023, eq. 17). Their gap is drawn to 1 / (2 beta) and not
    to infinity, as it is by `logistic` where everyone agrees."""
    return lambda diff: (diff - 1 / (2 * beta)) ** 2


def kwise_loss(
    scores_PK: Tensor,
    ranks_PK: Tensor,
    mask_PK: Tensor,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    margin: float | Tensor | None = None,
    p_better: Tensor | None = None,
    pair: PairLoss = logistic,
) -> tuple[Tensor, Metrics]:
    """InstructGPT eq. 1 over all pairs of a prompt at once: K forwards give K(K-1)/2 comparisons.

    ranks: 0 is best, equal ranks are ties and make no pair, -1 or mask 0 is padding. Per prompt the loss is the mean
    over its ordered pairs of -log sigmoid(r_w - r_l - margin); over prompts the (`weights` [P]) mean of those that
    have a pair; 0 if none has. `margin` is a number or broadcasts to [P, K winner, K loser]. `label_smoothing` is
    the assumed share of flipped labels. Metrics (detached): accuracy (score ties count 1/2; mean over prompts, as
    the loss), pairs, prompts, margin_mean.

    `p_better` [P, K, K] puts soft labels in the place of the ranks: entry i, j is the share of people who prefer i to
    j (its mirror entry is 1 minus it), NaN where no one compared them. A pair's loss is then the cross entropy of
    sigmoid(r_i - r_j) against the share, and accuracy is the share of votes that the scores agree with. `pair` is the
    loss of one pair; of log ratios this is DPO or IPO on all pairs of a prompt.
    """
    if not scores_PK.shape == ranks_PK.shape == mask_PK.shape:
        raise ValueError(f"shapes differ: {tuple(scores_PK.shape)}, {tuple(ranks_PK.shape)}, {tuple(mask_PK.shape)}")
    real = mask_PK.bool() & (ranks_PK >= 0)
    scores = at_least_fp32(scores_PK)
    scores = torch.where(real, scores, torch.zeros_like(scores))
    both = real[:, :, None] & real[:, None, :]
    if p_better is None:  # votes_PKK[p, i, j]: for i against j; the two entries of a pair sum to 1
        votes = ((ranks_PK[:, :, None] < ranks_PK[:, None, :]) & both).to(scores.dtype)
    else:
        both &= ~torch.eye(both.shape[-1], dtype=torch.bool, device=both.device)
        votes = p_better.to(scores.dtype).nan_to_num(0.0) * both
    diff = scores[:, :, None] - scores[:, None, :]
    shifted = diff if margin is None else diff - margin
    pair_loss = (1 - label_smoothing) * pair(shifted)
    if label_smoothing:
        pair_loss = pair_loss + label_smoothing * pair(-shifted)
    pairs_P = votes.sum((1, 2)).round()
    share_P = (pairs_P > 0).to(scores.dtype) if weights is None else weights.to(scores.dtype) * (pairs_P > 0)
    total = share_P.sum()
    share_P = share_P / torch.where(total > 0, total, torch.ones_like(total))

    def mean_over_pairs_then_prompts(x: Tensor) -> Tensor:
        per_prompt = torch.where(votes > 0, x * votes, torch.zeros_like(x)).sum((1, 2)) / pairs_P.clamp(min=1)
        return (per_prompt * share_P).sum()

    right = ((diff > 0).to(scores.dtype) + 0.5 * (diff == 0)).detach()
    metrics = {
        "accuracy": mean_over_pairs_then_prompts(right),
        "margin_mean": mean_over_pairs_then_prompts(diff.detach()),
        "pairs": pairs_P.sum().long(),
        "prompts": (pairs_P > 0).sum(),
    }
    return mean_over_pairs_then_prompts(pair_loss), {k: v.detach() for k, v in metrics.items()}


def soft_pair_loss(score_a: Tensor, score_b: Tensor, p_a: Tensor) -> Tensor:
    """Mean cross entropy of sigmoid(score_a - score_b) against P(a preferred) = `p_a` in 0..1 (1/2 is a tie)."""
    return F.binary_cross_entropy_with_logits(score_a - score_b, p_a.to(score_a.dtype))


def pair_accuracy(score_chosen: Tensor, score_rejected: Tensor) -> Tensor:
    """Share of pairs with the chosen one above; equal scores count 1/2, so a constant scorer gets 0.5."""
    diff = (score_chosen - score_rejected).detach()
    return ((diff > 0).float() + 0.5 * (diff == 0).float()).mean()


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    p_chosen: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """DPO (Rafailov et al. 2023, eq. 7) on summed log-probs of whole answers, each [B].

    `p_chosen` [B] is the share of people who prefer the chosen answer (1 without it), and `label_smoothing` the assumed
    share of flipped labels: the loss is the cross entropy against such soft labels (cDPO, Mitchell 2023). Metrics
    (detached): accuracy, margin, reward_chosen, reward_rejected (beta * log ratio).
    """
    ratios = policy_chosen - ref_chosen, policy_rejected - ref_rejected
    return _pair_loss(*ratios, logistic, beta, label_smoothing, p_chosen, scale=beta)


def ipo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    p_chosen: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """IPO (Azar et al. 2023, eq. 17): (log ratio of chosen - log ratio of rejected - 1 / (2 beta))^2, as `dpo_loss`.

    Log-probs may be sums (the paper) or means over an answer's tokens (TRL).
    """
    ratios = policy_chosen - ref_chosen, policy_rejected - ref_rejected
    return _pair_loss(*ratios, squared(beta), beta, label_smoothing, p_chosen, scale=1.0)


def _pair_loss(
    ratio_chosen: Tensor,
    ratio_rejected: Tensor,
    pair: PairLoss,
    beta: float,
    label_smoothing: float,
    p_chosen: Tensor | None,
    scale: float,
) -> tuple[Tensor, Metrics]:
    diff = scale * (ratio_chosen - ratio_rejected)
    p: float | Tensor = 1.0 if p_chosen is None else p_chosen.to(diff.dtype)
    p = p * (1 - label_smoothing) + (1 - p) * label_smoothing
    reward_chosen, reward_rejected = (beta * x.detach() for x in (ratio_chosen, ratio_rejected))
    metrics = {
        "accuracy": pair_accuracy(reward_chosen, reward_rejected),
        "margin": (reward_chosen - reward_rejected).mean(),
        "reward_chosen": reward_chosen.mean(),
        "reward_rejected": reward_rejected.mean(),
    }
    return (p * pair(diff) + (1 - p) * pair(-diff)).mean(), metrics


def kto_reference(policy_B: Tensor, ref_B: Tensor) -> Tensor:
    """KTO's reference point: max(0, mean log ratio) of answers to other prompts, a biased estimate of
    KL(policy || reference) (Ethayarajh et al. 2024, sec. 4.1); no gradient flows through it."""
    return (policy_B - ref_B).detach().mean().clamp(min=0)


def kto_loss(
    policy_B: Tensor,
    ref_B: Tensor,
    desirable_B: Tensor,
    kl: Tensor | float,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> tuple[Tensor, Metrics]:
    """KTO (Ethayarajh et al. 2024, eq. 8) on summed log-probs of answers with a thumb up or down: mean of
    weight * (1 - sigmoid(+-beta * (log ratio - kl))), + where `desirable_B`, `kl` as from `kto_reference`.

    Metrics (detached): reward_desirable, reward_undesirable (mean beta * log ratio; 0 without such answers), accuracy
    (share of answers whose log ratio lies on the right side of `kl`).
    """
    ratio, up = policy_B - ref_B, desirable_B.bool()
    sign = torch.where(up, 1.0, -1.0).to(ratio.dtype)
    weight = torch.where(up, desirable_weight, undesirable_weight).to(ratio.dtype)
    loss = (weight * (1 - torch.sigmoid(sign * beta * (ratio - kl)))).mean()
    seen = ratio.detach()
    side = sign * (seen - kl)
    metrics = {
        "accuracy": ((side > 0).float() + 0.5 * (side == 0).float()).mean(),
        "reward_desirable": beta * (seen * up).sum() / up.sum().clamp(min=1),
        "reward_undesirable": beta * (seen * ~up).sum() / (~up).sum().clamp(min=1),
    }
    return loss, metrics
