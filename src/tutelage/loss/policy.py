"""PPO: advantages, KL penalty, clipped losses, KL coefficients. A mask is 1 on response tokens only."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from tutelage.loss.lm import masked_mean, masked_sum, masked_var

Metrics = dict[str, Tensor]
KLKind = Literal["k1", "k2", "k3", "abs"]


def gae(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16): (advantages [B, T], returns [B, T]).

    One episode per row; the value after its last real token is 0 (it ends there). Tokens that are not the policy's,
    between its own (a tool's answer, a user's turn), are stepped over: the next real token follows directly.
    returns = advantages + values. Both are 0 outside the mask and carry no gradient.
    """
    mask = mask_BT.bool()
    zero = torch.zeros_like(values_BT)
    with torch.no_grad():
        rewards, values = torch.where(mask, rewards_BT, zero), torch.where(mask, values_BT, zero)
        advantages = torch.zeros_like(values)
        running = next_value = values.new_zeros(values.shape[0])
        for t in range(values.shape[1] - 1, -1, -1):
            now = rewards[:, t] + gamma * next_value - values[:, t] + gamma * lam * running
            running = torch.where(mask[:, t], now, running)
            next_value = torch.where(mask[:, t], values[:, t], next_value)
            advantages[:, t] = torch.where(mask[:, t], running, zero[:, t])
        return advantages, advantages + values


def kl_estimate(logp: Tensor, logp_ref: Tensor, kind: KLKind = "k1") -> Tensor:
    """Per-sample estimate of KL(pi || ref) in nats for samples of pi (Schulman, "Approximating KL divergence").

    With d = logp - logp_ref: k1 = d (unbiased), k2 = d^2/2 (biased, low variance), k3 = exp(-d) - 1 + d (unbiased,
    never negative), abs = |d| (no estimator of the KL; its mean lies above, kept for comparison).
    All are meant for the reward. As a differentiable loss on the policy's own samples only k2 has the gradient of
    KL(pi || ref): k1's is 0 on average, k3's is that of KL(ref || pi).
    """
    d = logp - logp_ref
    if kind == "k1":
        return d
    if kind == "k2":
        return 0.5 * d * d
    if kind == "k3":
        return torch.expm1(-d) + d
    if kind == "abs":
        return d.abs()
    raise ValueError(f"unknown KL estimator {kind!r}; one of k1, k2, k3, abs")


def per_token_rewards(scores_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, beta: float) -> Tensor:
    """-beta * KL on each real token, the score added on the last real one; 0 on padding. An empty row stays 0."""
    mask = mask_BT.bool()
    rewards = torch.where(mask, -beta * kl_BT, torch.zeros_like(kl_BT))
    steps = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    last_B1 = (mask * steps).amax(1, keepdim=True)  # 1-based; 0 for an empty row
    is_last = mask & (steps == last_B1)
    return rewards + torch.where(is_last, scores_B[:, None].to(rewards.dtype), torch.zeros_like(rewards))


def _denominator(mask_BT: Tensor, denominator: float | Tensor | None) -> float | Tensor:
    return mask_BT.bool().sum().clamp(min=1) if denominator is None else denominator


def policy_loss(
    logp_BT: Tensor,
    old_logp_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    clip: float = 0.2,
    denominator: float | Tensor | None = None,
    weights: Tensor | None = None,
    clip_high: float | None = None,
) -> tuple[Tensor, Metrics]:
    """Clipped surrogate (Schulman et al. 2017, eq. 7), negated: sum over real tokens / denominator, or the sum of
    `weights` [B, 1] (see `answer_weights`) times each token. `clip_high`: another upper bound (Yu et al. 2025).

    `denominator` is the token count of the whole minibatch when this is one of its micro-batches; default: the
    tokens here. Metrics (detached, over real tokens): ratio_mean, ratio_max_dev = max |ratio - 1|, clip_fraction
    (tokens where the clip is active, that is, has no gradient), approx_kl = k3 of KL(old || new).
    """
    mask = mask_BT.bool()
    # Padding is zeroed before exp: inf there would turn into NaN gradients even behind a `where`.
    log_ratio = torch.where(mask, logp_BT - old_logp_BT, torch.zeros_like(logp_BT))
    advantages = torch.where(mask, advantages_BT, torch.zeros_like(advantages_BT))
    ratio = log_ratio.exp()
    high = clip if clip_high is None else clip_high
    unclipped, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + high)
    worse = torch.maximum(unclipped, clipped)
    if weights is None:
        loss = masked_sum(worse, mask) / _denominator(mask, denominator)
    else:
        loss = masked_sum(worse * weights, mask)
    with torch.no_grad():
        dev = (ratio - 1).abs() * mask
        metrics = {
            "ratio_mean": masked_mean(ratio, mask),
            "ratio_max_dev": dev.max() if dev.numel() else dev.sum(),
            "clip_fraction": masked_mean((clipped > unclipped).to(ratio.dtype), mask),
            "approx_kl": masked_mean(torch.expm1(log_ratio) - log_ratio, mask),
        }
    return loss, metrics


def value_loss(
    values_BT: Tensor,
    old_values_BT: Tensor,
    returns_BT: Tensor,
    mask_BT: Tensor,
    clip: float = 0.2,
    denominator: float | Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """0.5 * max((v - R)^2, (clip(v, old +- clip) - R)^2), summed over real tokens / denominator (see policy_loss).

    Metrics (detached): value_clip_fraction, value_error (mean squared, unclipped), value_mean.
    """
    mask = mask_BT.bool()
    zero = torch.zeros_like(values_BT)
    values, old, returns = (torch.where(mask, x, zero) for x in (values_BT, old_values_BT, returns_BT))
    unclipped = (values - returns) ** 2
    clipped = (old + (values - old).clamp(-clip, clip) - returns) ** 2
    loss = 0.5 * masked_sum(torch.maximum(unclipped, clipped), mask) / _denominator(mask, denominator)
    with torch.no_grad():
        metrics = {
            "value_clip_fraction": masked_mean((clipped > unclipped).to(values.dtype), mask),
            "value_error": masked_mean(unclipped, mask),
            "value_mean": masked_mean(values, mask),
        }
    return loss, metrics


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - var(returns - values) / var(returns) over the mask; 1 perfect, 0 a constant, 0 if returns do not vary."""
    with torch.no_grad():
        total = masked_var(returns, mask)
        unexplained = masked_var(returns - values, mask)
        return torch.where(total > 0, 1 - unexplained / total.clamp(min=1e-30), torch.zeros_like(total))


class FixedKL:
    """A KL coefficient that does not move."""

    def __init__(self, coef: float) -> None:
        self.coef = float(coef)

    def update(self, kl: float, episodes: int) -> float:
        """The coefficient, unchanged."""
        return self.coef

    def state_dict(self) -> dict[str, Any]:
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.coef = float(state["coef"])


class AdaptiveKL(FixedKL):
    """Proportional controller of the KL coefficient (Ziegler et al. 2019, section 2.2).

    target: nats per episode (KL summed over tokens, k1); horizon: episodes.
    """

    def __init__(self, coef: float, target: float, horizon: float) -> None:
        if not (target > 0 and horizon > 0):
            raise ValueError(f"target and horizon must be above 0, not {target} and {horizon}")
        super().__init__(coef)
        self.target, self.horizon = float(target), float(horizon)

    def update(self, kl: float, episodes: int) -> float:
        """Multiply the coefficient by 1 + clip(kl/target - 1, +-0.2) * episodes / horizon and return it.

        kl: mean over episodes, in nats; a NaN or infinite one is passed over."""
        if not math.isfinite(kl):
            return self.coef  # one broken batch must not destroy the coefficient for good
        error = min(max(float(kl) / self.target - 1, -0.2), 0.2)
        self.coef *= max(1 + error * episodes / self.horizon, 0.0)
        return self.coef


GroupKind = Literal["grpo", "rloo", "dr_grpo"]


def group_advantages(scores_PK: Tensor, mode: GroupKind = "grpo") -> Tensor:
    """Critic-free advantages [P, K] from K sampled answers per prompt.

    grpo: (score - mean) / (std + 1e-6), sample std (Shao et al. 2024, section 4.1.2); a group of equal scores gives 0.
    dr_grpo: score - mean (Liu et al. 2025, section 3.2: the std weighs prompts by how much their answers differ).
    rloo: score minus the mean of the other K-1 (Ahmadian et al. 2024, eq. 8). ValueError for K < 2.
    """
    k = scores_PK.shape[1]
    if k < 2:
        raise ValueError("group advantages need at least two answers per prompt")
    centred = scores_PK - scores_PK.mean(1, keepdim=True)
    # equal scores must give exactly 0, not the mean's rounding noise, which grpo would divide by 1e-6
    alike = scores_PK.amax(1, keepdim=True) == scores_PK.amin(1, keepdim=True)
    if mode == "grpo":
        return (centred / (scores_PK.std(1, keepdim=True) + 1e-6)).masked_fill(alike, 0.0)
    if mode not in ("rloo", "dr_grpo"):
        raise ValueError(f"unknown mode {mode!r}; one of grpo, rloo, dr_grpo")
    return (centred * (k / (k - 1) if mode == "rloo" else 1.0)).masked_fill(alike, 0.0)


AnswerMean = Literal["answers", "tokens", "constant"]


def answer_weights(mask_BT: Tensor, how: AnswerMean, longest: int) -> Tensor:
    """Weight [B, 1] of each token in the loss of a minibatch of B answers.

    answers: the mean of the answers' own means, 1 / (B * length) (Shao et al. 2024, eq. 3);
    tokens: the mean over all tokens (Yu et al. 2025, eq. 8: a long answer's tokens count as much as a short one's);
    constant: 1 / (B * longest), the same whatever the lengths (Liu et al. 2025: dividing by an answer's own length
    makes long wrong answers cheap).
    """
    lengths = mask_BT.bool().sum(1, keepdim=True)
    ones, rows = torch.ones_like(lengths, dtype=torch.float32), mask_BT.shape[0]
    if how == "answers":
        return ones / (rows * lengths.clamp(min=1))
    if how == "tokens":
        return ones / lengths.sum().clamp(min=1)
    if how == "constant":
        return ones / (rows * longest)
    raise ValueError(f"unknown mean {how!r}; one of answers, tokens, constant")
