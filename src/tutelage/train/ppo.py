"""PPO-ptx in InstructGPT's order: roll out, score, penalise KL, estimate advantages, clip, add the pretraining gradient.

Shapes: B episodes, T tokens (prompt and response, right-padded). A quantity "at t" belongs to the action that chose
token t+1, so every per-token tensor is [B, T-1] and `mask` marks the positions whose next token is a response token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.core.runtime import autocast
from tutelage.core.stats import correlation
from tutelage.loss.lm import cross_entropy_sum, entropy_from_logits, masked_mean, masked_whiten, token_logprobs
from tutelage.loss.policy import explained_variance, gae, kl_estimate, per_token_rewards, policy_loss, value_loss


@dataclass
class Rollout:
    """One update's episodes. tokens, attention [B, T]; mask [B, T-1]; scores [B]."""

    tokens: Tensor
    attention: Tensor
    mask: Tensor
    scores: Tensor


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


def logprobs_and_entropy(
    model: nn.Module, tokens: Tensor, attention: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies [B, T-1] of the temperature-scaled policy: the same temperature in every log-prob."""
    logits = model(input_ids=tokens, attention_mask=attention, use_cache=False).logits
    logp = token_logprobs(logits, tokens, temperature)
    with torch.no_grad():
        entropy = entropy_from_logits(logits[:, :-1].float() / temperature)
    return logp, entropy


def update(
    policy: nn.Module,
    critic: nn.Module,
    reference: nn.Module,
    rollout: Rollout,
    policy_optim: Any,
    critic_optim: Any,
    *,
    beta: float,
    done: float,
    epochs: int = 1,
    minibatches: int = 4,
    clip: float = 0.2,
    value_clip: float = 0.2,
    gamma: float = 1.0,
    lam: float = 0.95,
    kl_kind: str = "k1",
    whiten_rewards: bool = False,
    temperature: float = 1.0,
    ptx_coef: float = 0.0,
    ptx_batch: Callable[[], dict[str, Tensor]] | None = None,
    precision: str = "auto",
) -> dict[str, float]:
    """One PPO update on one rollout. Returns metrics, all of them masked means."""
    B = rollout.tokens.shape[0]
    size = (B + minibatches - 1) // minibatches
    slices = [slice(i, min(B, i + size)) for i in range(0, B, size)]
    parts: dict[str, list[Tensor]] = {"old": [], "ref": [], "values": [], "entropy": []}
    # Old and reference log-probs come from the training forward on the update's own minibatches: batch shape alone
    # moves results by 2e-5, and the ratio of the first minibatch has to be exactly 1.
    with torch.no_grad(), autocast(precision):
        for s in slices:
            tokens, attention = rollout.tokens[s], rollout.attention[s]
            old, entropy = logprobs_and_entropy(policy, tokens, attention, temperature)
            ref, _ = logprobs_and_entropy(reference, tokens, attention, temperature)
            for key, value in (
                ("old", old),
                ("ref", ref),
                ("entropy", entropy),
                ("values", critic(tokens, attention)[:, :-1].float()),
            ):
                parts[key].append(value)
    old, ref, values, entropy = (torch.cat(parts[k]) for k in ("old", "ref", "values", "entropy"))
    mask = rollout.mask
    kl = kl_estimate(old, ref, kl_kind) * mask
    rewards = per_token_rewards(rollout.scores, kl, mask, beta)
    if whiten_rewards:
        rewards = masked_whiten(rewards, mask, shift_mean=False) * mask
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    advantages = masked_whiten(advantages, mask) * mask
    stats: dict[str, list[float]] = {}
    steps = 0
    for _ in range(epochs):
        for s in slices:
            out = _minibatch(
                policy,
                critic,
                rollout,
                s,
                old[s],
                values[s],
                advantages[s],
                returns[s],
                clip,
                value_clip,
                temperature,
                ptx_coef,
                ptx_batch,
                precision,
            )
            norm, _ = policy_optim.step(done)
            value_norm, _ = critic_optim.step(done)
            steps += 1
            for key, value in {**out, "grad_norm": norm, "value_grad_norm": value_norm}.items():
                stats.setdefault(key, []).append(float(value))
    lengths = mask.sum(1)
    return {
        "kl": float((kl.sum(1)).mean()),
        "entropy": float(masked_mean(entropy, mask)),
        "explained_variance": float(explained_variance(values, returns, mask)),
        "length": float(lengths.mean()),
        "optimizer_steps": steps,
        "length_reward_correlation": correlation(lengths.tolist(), rollout.scores.tolist()),
        "first_ratio_deviation": stats["ratio_max_dev"][0],
        **{k: sum(v) / len(v) for k, v in stats.items() if k != "ratio_max_dev"},
    }


def _minibatch(
    policy: nn.Module,
    critic: nn.Module,
    rollout: Rollout,
    s: slice,
    old: Tensor,
    values: Tensor,
    advantages: Tensor,
    returns: Tensor,
    clip: float,
    value_clip: float,
    temperature: float,
    ptx_coef: float,
    ptx_batch: Callable[[], dict[str, Tensor]] | None,
    precision: str,
) -> dict[str, Any]:
    """Gradients of one minibatch: policy, value and gamma * pretraining are summed before ONE step (InstructGPT C.4)."""
    tokens, attention, mask = rollout.tokens[s], rollout.attention[s], rollout.mask[s]
    with autocast(precision):
        logits = policy(input_ids=tokens, attention_mask=attention, use_cache=False).logits
        logp = token_logprobs(logits, tokens, temperature)
        new_values = critic(tokens, attention)[:, :-1].float()
    pg_loss, metrics = policy_loss(logp, old, advantages, mask, clip)
    v_loss, v_metrics = value_loss(new_values, values, returns, mask, value_clip)
    pg_loss.backward()
    v_loss.backward()
    out = {
        "policy_loss": pg_loss.detach(),
        "value_loss": v_loss.detach(),
        **{k: metrics[k] for k in ("clip_fraction", "approx_kl", "ratio_max_dev")},
    }
    if ptx_coef and ptx_batch is not None:
        batch = ptx_batch()
        with autocast(precision):
            ptx_logits = policy(input_ids=batch["input_ids"], use_cache=False).logits
        total, count = cross_entropy_sum(ptx_logits, batch["labels"])
        (ptx_coef * total / count).backward()
        out["ptx_loss"] = (total / count).detach()
    return out
