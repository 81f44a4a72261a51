"""PPO-ptx in InstructGPT's order: roll out, score, penalise KL, estimate advantages, clip, add pretraining gradients.

Shapes: B episodes, T tokens (prompt and response, right-padded). A quantity "at t" belongs to the action that chose
token t+1, so every per-token tensor is [B, T-1] and `mask` marks the positions whose next token is a response token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from tutelage.core.runtime import autocast
from tutelage.core.stats import correlation
from tutelage.loss.lm import cross_entropy_sum, entropy_from_logits, masked_mean, masked_whiten, token_logprobs
from tutelage.loss.policy import explained_variance, gae, kl_estimate, per_token_rewards, policy_loss, value_loss

Forward = Callable[[Tensor, Tensor], Tensor]


class UpdateConfig(BaseModel):
    """How one rollout moves the policy (InstructGPT sec. 3.5 and C.4; Schulman et al. 2017)."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    epochs: int = Field(1, ge=1)
    """Passes over the rollout."""
    minibatches: int = Field(4, ge=1)
    """Optimiser steps per pass."""
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
    missing_eos_penalty: float = 1.0
    """Subtracted from the score of a response that did not end."""
    temperature: float = Field(1.0, gt=0)
    """Of the sampler, and of every log-prob."""
    ptx_coef: float = Field(0.3, ge=0)
    """gamma of PPO-ptx: weight of the pretraining loss."""


@dataclass
class Rollout:
    """One update's episodes: tokens, attention [B, T]; mask [B, T-1]; ended [B] (1: the response has its end)."""

    tokens: Tensor
    attention: Tensor
    mask: Tensor
    ended: Tensor
    sampled: Tensor | None = None
    """The sampler's own log-probs [B, T-1], to be held against the training forward's."""


@dataclass
class Actors:
    """Who takes part: (tokens, attention) -> logits [B, T, V] of policy and reference, values [B, T] of the critic."""

    policy: Forward
    reference: Forward
    critic: Forward
    policy_optim: Any
    critic_optim: Any


@dataclass
class Judged:
    """What the rollout looks like before the first step, each [B, T-1]; no gradient."""

    old: Tensor
    ref: Tensor
    values: Tensor
    entropy: Tensor


def collate(prompts: list[list[int]], responses: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Right-pad prompt+response. Returns tokens [B, T], attention [B, T], mask [B, T-1]."""
    T = max(len(p) + len(r) for p, r in zip(prompts, responses))
    tokens = torch.full((len(prompts), T), pad_id)
    attention, response = torch.zeros_like(tokens), torch.zeros_like(tokens)
    for i, (p, r) in enumerate(zip(prompts, responses)):
        tokens[i, : len(p) + len(r)] = torch.tensor(p + r)
        attention[i, : len(p) + len(r)] = 1
        response[i, len(p) : len(p) + len(r)] = 1
    return tokens, attention, response[:, 1:].float()


def _slices(rollout: Rollout, minibatches: int) -> Iterator[slice]:
    B = rollout.tokens.shape[0]
    size = (B + minibatches - 1) // minibatches
    return (slice(i, min(B, i + size)) for i in range(0, B, size))


@torch.no_grad()
def judge(actors: Actors, rollout: Rollout, config: UpdateConfig, precision: str = "fp32") -> Judged:
    """Old and reference log-probs, values and entropies, by the training forward on the update's own minibatches.

    Batch shape alone moves log-probs by 2e-5, and the ratio of the first minibatch has to be exactly 1.
    """
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    with autocast(precision):
        for s in _slices(rollout, config.minibatches):
            tokens, attention = rollout.tokens[s], rollout.attention[s]
            logits = actors.policy(tokens, attention)
            old = token_logprobs(logits, tokens, config.temperature)
            entropy = entropy_from_logits(logits[:, :-1].float() / config.temperature)
            del logits
            ref = token_logprobs(actors.reference(tokens, attention), tokens, config.temperature)
            parts.append((old, ref, actors.critic(tokens, attention)[:, :-1].float(), entropy))
    return Judged(*(torch.cat(x) for x in zip(*parts)))


def improve(
    actors: Actors,
    rollout: Rollout,
    scores: Tensor,
    judged: Judged,
    config: UpdateConfig,
    *,
    beta: float,
    done: float,
    ptx: Callable[[], dict[str, Tensor]] | None = None,
    precision: str = "fp32",
) -> dict[str, float]:
    """The optimiser steps of one rollout, `epochs * minibatches` of them. scores [B]; `done` in [0, 1) drives the
    schedule. Returns metrics: per-token ones are masked means, `kl` is the mean sum over an episode's tokens,
    `skipped_steps` counts those whose gradients were not finite (they leave the weights untouched)."""
    mask = rollout.mask
    kl = kl_estimate(judged.old, judged.ref, config.kl_kind) * mask
    scores = scores - config.missing_eos_penalty * (1 - rollout.ended)
    rewards = per_token_rewards(scores, kl, mask, beta)
    if config.whiten_rewards:
        rewards = masked_whiten(rewards, mask, shift_mean=False) * mask
    advantages, returns = gae(rewards, judged.values, mask, config.gamma, config.lam)
    advantages = masked_whiten(advantages, mask) * mask
    rows: list[dict[str, float]] = []
    weights: list[float] = []
    skipped = 0
    for _ in range(config.epochs):
        for s in _slices(rollout, config.minibatches):
            out = _minibatch(actors, rollout, s, judged, advantages, returns, config, ptx, precision)
            out["grad_norm"], policy_moved = actors.policy_optim.step(done)
            out["value_grad_norm"], critic_moved = actors.critic_optim.step(done)
            skipped += not (policy_moved and critic_moved)
            rows.append({k: float(v) for k, v in out.items()})
            weights.append(float(mask[s].sum()))
    lengths = mask.sum(1)
    total = max(sum(weights), 1.0)
    facts = {
        "kl": float(kl.sum(1).mean()),
        "entropy": float(masked_mean(judged.entropy, mask)),
        "explained_variance": float(explained_variance(judged.values, returns, mask)),
        "length": float(lengths.mean()),
        "eos_rate": float(rollout.ended.mean()),
        "optimizer_steps": len(rows),
        "skipped_steps": skipped,
        "length_reward_correlation": correlation(lengths.tolist(), scores.tolist()),
        "first_ratio_deviation": rows[0]["ratio_max_dev"],
    }
    if rollout.sampled is not None:
        facts["sampler_gap"] = float(masked_mean((judged.old - rollout.sampled).abs(), mask))
    means = {k: sum(r[k] * w for r, w in zip(rows, weights)) / total for k in rows[0] if k != "ratio_max_dev"}
    return {**facts, **means}


def _minibatch(
    actors: Actors,
    rollout: Rollout,
    s: slice,
    judged: Judged,
    advantages: Tensor,
    returns: Tensor,
    config: UpdateConfig,
    ptx: Callable[[], dict[str, Tensor]] | None,
    precision: str,
) -> dict[str, Any]:
    """Gradients of one minibatch: policy and gamma * pretraining are summed before ONE step (InstructGPT C.4).

    Each backward ends before the next forward: with a shared LoRA trunk the forward switches the adapter.
    """
    tokens, attention, mask = rollout.tokens[s], rollout.attention[s], rollout.mask[s]
    with autocast(precision):
        logp = token_logprobs(actors.policy(tokens, attention), tokens, config.temperature)
    pg_loss, metrics = policy_loss(logp, judged.old[s], advantages[s], mask, config.clip)
    pg_loss.backward()
    out = {"policy_loss": pg_loss.detach()}
    out |= {k: metrics[k] for k in ("clip_fraction", "approx_kl", "ratio_max_dev")}
    if config.ptx_coef and ptx is not None:
        batch = ptx()
        with autocast(precision):
            logits = actors.policy(batch["input_ids"], torch.ones_like(batch["input_ids"]))
            total, count = cross_entropy_sum(logits, batch["labels"])
        (config.ptx_coef * total / count).backward()
        out["ptx_loss"] = (total / count).detach()
    with autocast(precision):
        values = actors.critic(tokens, attention)[:, :-1].float()
    v_loss, v_metrics = value_loss(values, judged.values[s], returns[s], mask, config.value_clip)
    v_loss.backward()
    return {**out, "value_loss": v_loss.detach(), "value_clip_fraction": v_metrics["value_clip_fraction"]}
