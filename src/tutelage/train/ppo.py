"""PPO-ptx in InstructGPT's order: roll out, score, penalise KL, estimate advantages, clip, add pretraining gradients.

Shapes as in train/update.py.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from tutelage.core.distributed import own, world_size
from tutelage.core.runtime import autocast
from tutelage.loss.lm import masked_whiten
from tutelage.loss.policy import explained_variance, gae, kl_estimate, per_token_rewards, policy_loss, value_loss
from tutelage.train.update import (
    Actors,
    Forward,
    Judged,
    PassConfig,
    Ptx,
    Rollout,
    collate,
    current_logprobs,
    facts,
    judge,
    passes,
    pretraining_gradient,
    share,
)

__all__ = ["Actors", "Forward", "Judged", "Rollout", "UpdateConfig", "collate", "improve", "judge"]


class UpdateConfig(PassConfig):
    """How one rollout moves the policy (InstructGPT sec. 3.5 and C.4; Schulman et al. 2017)."""

    clip: float = Field(0.2, gt=0)
    """The policy's probability ratio counts within 1 +- clip."""
    value_clip: float = Field(0.2, gt=0)
    """The critic's value counts within this distance of the rollout's."""
    gamma: float = Field(1.0, ge=0, le=1)
    """Discount per token; InstructGPT has none."""
    lam: float = Field(0.95, ge=0, le=1)
    """Lambda of GAE."""
    kl_kind: Literal["k1", "k2", "k3", "abs"] = "k1"
    """Estimator of the per-token KL in the reward."""
    whiten_rewards: bool = False
    """Divide the rollout's rewards by their standard deviation."""


def improve(
    actors: Actors,
    rollout: Rollout,
    scores: Tensor,
    judged: Judged,
    config: UpdateConfig,
    *,
    beta: float,
    done: float,
    ptx: Ptx | None = None,
    precision: str = "fp32",
) -> dict[str, float]:
    """The optimiser steps of one rollout, `epochs * minibatches` of them. scores [B]; `done` in [0, 1) drives the
    schedule. Returns metrics (see `facts`)."""
    mask = rollout.mask
    kl = kl_estimate(judged.old, judged.ref, config.kl_kind) * mask
    scores = scores - config.missing_eos_penalty * (1 - rollout.ended)
    rewards = per_token_rewards(scores, kl, mask, beta)
    if config.whiten_rewards:
        rewards = masked_whiten(rewards, mask, shift_mean=False) * mask
    advantages, returns = gae(rewards, judged.values, mask, config.gamma, config.lam)
    advantages = masked_whiten(advantages, mask) * mask

    def minibatch(s: slice) -> tuple[dict[str, Any], float]:
        out = _minibatch(actors, rollout, s, judged, advantages, returns, config, ptx, precision)
        return out, float(mask[own(s)].sum())

    made = passes(actors, len(mask), config, done, minibatch)
    explained = float(explained_variance(judged.values, returns, mask))
    return {**facts(rollout, judged, kl, scores, made), "explained_variance": explained}


def _minibatch(
    actors: Actors,
    rollout: Rollout,
    s: slice,
    judged: Judged,
    advantages: Tensor,
    returns: Tensor,
    config: UpdateConfig,
    ptx: Ptx | None,
    precision: str,
) -> dict[str, Any]:
    """Gradients of this rank's part of one minibatch, as parts of the whole minibatch's mean.

    Each backward ends before the next forward: with a shared LoRA trunk the forward switches the adapter.
    """
    part = share(rollout, s) if world_size() > 1 else 1.0
    s = own(s)
    mask = rollout.mask[s]
    logp = current_logprobs(actors, rollout, s, config, precision)
    pg_loss, metrics = policy_loss(logp, judged.old[s], advantages[s], mask, config.clip)
    (pg_loss * part if part != 1.0 else pg_loss).backward()
    out = {"policy_loss": pg_loss.detach()}
    out |= {k: metrics[k] for k in ("clip_fraction", "approx_kl", "ratio_max_dev")}
    out |= pretraining_gradient(actors, config, ptx, precision)
    assert actors.critic is not None
    with autocast(precision):
        values = actors.critic(rollout.tokens[s], rollout.attention[s])[:, :-1].float()
    v_loss, v_metrics = value_loss(values, judged.values[s], returns[s], mask, config.value_clip)
    (v_loss * part if part != 1.0 else v_loss).backward()
    return {**out, "value_loss": v_loss.detach(), "value_clip_fraction": v_metrics["value_clip_fraction"]}
