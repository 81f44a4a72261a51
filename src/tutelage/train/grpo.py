"""GRPO, Dr. GRPO and RLOO: several answers to a prompt are each other's baseline, and there is no critic.

Shapes as in train/update.py; the `group` answers to one prompt stand one behind another.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from tutelage.core.distributed import own, world_size
from tutelage.loss.lm import masked_sum
from tutelage.loss.policy import AnswerMean, GroupKind, answer_weights, group_advantages, kl_estimate, policy_loss
from tutelage.train.update import (
    Actors,
    Judged,
    PassConfig,
    Ptx,
    Rollout,
    current_logprobs,
    facts,
    passes,
    pretraining_gradient,
    share,
)

KLKind = Literal["k1", "k2", "k3", "abs"]
METHODS: dict[str, tuple[str, str, str, str]] = {
    # KL in, its estimator, ratio of, mean over
    "grpo": ("loss", "k3", "token", "answers"),
    "dr_grpo": ("loss", "k3", "token", "constant"),
    "rloo": ("reward", "k1", "answer", "answers"),
}
"""What each method's paper does, where a key does not say otherwise."""


class GroupConfig(PassConfig):
    """How one rollout moves the policy without a critic (Shao et al. 2024; Liu et al. 2025; Ahmadian et al. 2024)."""

    advantage: GroupKind = "grpo"
    """grpo: score minus the group's mean, over its standard deviation; dr_grpo: without the division; rloo: minus the
    mean of the other answers."""
    group_size: int = Field(8, ge=2)
    """Answers per prompt."""
    max_tokens: int = Field(24, ge=1)
    """Longest answer."""
    clip: float = Field(0.2, gt=0)
    """The probability ratio counts within 1 +- clip."""
    clip_high: float | None = Field(None, gt=0)
    """Another bound above: 1 + clip_high (DAPO)."""
    kl_in: Literal["loss", "reward"] | None = None
    """Where the KL to the reference is charged: as a term of the loss (grpo, dr_grpo) or in the score (rloo)."""
    kl_kind: KLKind | None = None
    """Its estimator; by default k3 in the loss and k1 in the score."""
    kl_corrected: bool = False
    """Multiply the loss's KL by the probability ratio: its gradient is then that of KL(policy || reference), which k3
    alone does not have (DeepSeek-V3.2; TRL's default)."""
    ratio: Literal["token", "answer"] | None = None
    """What the probability ratio is of: each token (grpo, dr_grpo), or the answer as one action (rloo)."""
    average: AnswerMean | None = None
    """The loss of a minibatch. answers: mean over answers of their tokens' mean (grpo); tokens: mean over all tokens
    (DAPO); constant: sum of the tokens over answers times max_tokens (dr_grpo). With ratio=answer: over answers."""

    def leaves_open(self) -> bool:
        """Whether the update's own forward may give the old log-probs: one minibatch, one rank (all need all of them),
        and no score that needs them."""
        return world_size() == 1 and self.minibatches == 1 and self.chosen()[0] == "loss"

    def chosen(self) -> tuple[str, str, str, str]:
        """(kl_in, kl_kind, ratio, average) with the method's own where no key says otherwise."""
        where, kind, ratio, average = METHODS[self.advantage]
        where = self.kl_in or where
        kind = self.kl_kind or ("k3" if where == "loss" else "k1")
        return where, kind, self.ratio or ratio, self.average or average


def improve_groups(
    actors: Actors,
    rollout: Rollout,
    scores: Tensor,
    judged: Judged,
    config: GroupConfig,
    *,
    beta: float,
    done: float,
    ptx: Ptx | None = None,
    precision: str = "fp32",
) -> dict[str, float]:
    """The optimiser steps of one rollout of groups, as `ppo.improve`; `judged` may be open. Returns metrics (`facts`),
    among them `flat_groups`, the share of prompts whose answers all score alike and so teach nothing."""
    mask, (where, kind, _, _) = rollout.mask, config.chosen()
    scores = scores - config.missing_eos_penalty * (1 - rollout.ended)
    charged = scores
    if where == "reward" and beta:
        charged = scores - beta * (kl_estimate(judged.old, judged.ref, kind) * mask).sum(1)  # type: ignore[arg-type]
    advantages = group_advantages(charged.view(-1, rollout.group), config.advantage).reshape(-1, 1)

    def minibatch(s: slice) -> tuple[dict[str, Any], float]:
        out = _minibatch(actors, rollout, s, judged, advantages, config, beta, ptx, precision)
        return out, float(mask[own(s)].sum())

    made = passes(actors, len(mask), config, done, minibatch)
    kl = kl_estimate(judged.old, judged.ref) * mask
    scored = scores.view(-1, rollout.group)
    return {
        **facts(rollout, judged, kl, scores, made),
        "flat_groups": float((scored.amax(1) == scored.amin(1)).float().mean()),
        "group_std": float(scored.std(1).mean()),
    }


def group_loss(
    logp: Tensor, old: Tensor, ref: Tensor, advantages_B1: Tensor, mask: Tensor, config: GroupConfig, beta: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of one minibatch of answers, log-probs and mask [b, T-1], and its metrics (detached, see policy_loss)."""
    where, kind, ratio, average = config.chosen()
    weights = answer_weights(mask, average, config.max_tokens)  # type: ignore[arg-type]
    if ratio == "answer":
        new, before = (torch.where(mask.bool(), x, torch.zeros_like(x)).sum(1, keepdim=True) for x in (logp, old))
        ones = torch.ones_like(advantages_B1)
        loss, metrics = policy_loss(new, before, advantages_B1, ones, config.clip, clip_high=config.clip_high)
    else:
        spread = advantages_B1.expand_as(logp)
        loss, metrics = policy_loss(
            logp, old, spread, mask, config.clip, weights=weights, clip_high=config.clip_high
        )  # fmt: skip
    if where == "loss" and beta:
        gap = torch.where(mask.bool(), logp - ref, torch.zeros_like(logp))
        each = kl_estimate(gap, torch.zeros_like(gap), kind)  # type: ignore[arg-type]
        if config.kl_corrected:
            each = each * torch.where(mask.bool(), logp - old, torch.zeros_like(logp)).exp()
        penalty = masked_sum(each * weights, mask)
        loss = loss + beta * penalty
        metrics = {**metrics, "kl_loss": penalty.detach()}
    return loss, metrics


def _minibatch(
    actors: Actors,
    rollout: Rollout,
    s: slice,
    judged: Judged,
    advantages: Tensor,
    config: GroupConfig,
    beta: float,
    ptx: Ptx | None,
    precision: str,
) -> dict[str, Any]:
    """Gradients of this rank's part of one minibatch, as parts of the whole minibatch's mean."""
    _, _, ratio, average = config.chosen()
    part = share(rollout, s, by_answers=ratio == "answer" or average != "tokens") if world_size() > 1 else 1.0
    s = own(s)
    logp = current_logprobs(actors, rollout, s, config, precision, judged)
    loss, metrics = group_loss(
        logp, judged.old[s], judged.ref[s], advantages[s], rollout.mask[s], config, beta
    )  # fmt: skip
    (loss * part if part != 1.0 else loss).backward()
    out = {"policy_loss": loss.detach()}
    out |= {k: metrics[k] for k in ("clip_fraction", "approx_kl", "ratio_max_dev", "kl_loss") if k in metrics}
    return out | pretraining_gradient(actors, config, ptx, precision)
