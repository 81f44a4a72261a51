"""Preference losses: K-wise Bradley-Terry (InstructGPT eq. 1), soft pair labels, DPO."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.loss.lm import at_least_fp32

Metrics = dict[str, Tensor]


def kwise_loss(
    scores_PK: Tensor,
    ranks_PK: Tensor,
    mask_PK: Tensor,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    margin: float | Tensor | None = None,
    p_better: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """InstructGPT eq. 1 over all pairs of a prompt at once: K forwards give K(K-1)/2 comparisons.

    ranks: 0 is best, equal ranks are ties and make no pair, -1 or mask 0 is padding. Per prompt the loss is the mean
    over its ordered pairs of -log sigmoid(r_w - r_l - margin); over prompts the (`weights` [P]) mean of those that
    have a pair; 0 if none has. `margin` is a number or broadcasts to [P, K winner, K loser]. `label_smoothing` is
    the assumed share of flipped labels. Metrics (detached): accuracy (score ties count 1/2; mean over prompts, as
    the loss), pairs, prompts, margin_mean.

    `p_better` [P, K, K] puts soft labels in the place of the ranks: entry i, j is the share of people who prefer i to
    j (its mirror entry is 1 minus it), NaN where no one compared them. A pair's loss is then the cross entropy of
    sigmoid(r_i - r_j) against the share, and accuracy is the share of votes that the scores agree with.
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
    pair_loss = -(1 - label_smoothing) * F.logsigmoid(shifted)
    if label_smoothing:
        pair_loss = pair_loss - label_smoothing * F.logsigmoid(-shifted)
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
) -> tuple[Tensor, Metrics]:
    """DPO (Rafailov et al. 2023, eq. 7) on summed log-probs of whole answers, each [B]; `label_smoothing` gives
    the conservative form. Metrics (detached): accuracy, margin, reward_chosen, reward_rejected (beta * log ratio)."""
    reward_chosen = beta * (policy_chosen - ref_chosen)
    reward_rejected = beta * (policy_rejected - ref_rejected)
    diff = reward_chosen - reward_rejected
    loss = -(1 - label_smoothing) * F.logsigmoid(diff) - label_smoothing * F.logsigmoid(-diff)
    metrics = {
        "accuracy": pair_accuracy(reward_chosen, reward_rejected),
        "margin": diff.detach().mean(),
        "reward_chosen": reward_chosen.detach().mean(),
        "reward_rejected": reward_rejected.detach().mean(),
    }
    return loss.mean(), metrics
