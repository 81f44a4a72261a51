"""What PPO, GRPO, RLOO and online DPO share in one update: the rollout, the forwards before the first step, the passes
over minibatches, the pretraining gradient and the facts that are logged.

Shapes: B episodes, T tokens (prompt and response, right-padded). A quantity "at t" belongs to the action that chose
token t+1, so every per-token tensor is [B, T-1] and `mask` marks the positions whose next token is a response token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from tutelage.core.distributed import agreed, all_sum, gather, own, world_size
from tutelage.core.runtime import autocast
from tutelage.core.stats import correlation
from tutelage.loss.lm import cross_entropy_sum, entropy_from_logits, masked_mean, token_logprobs
from tutelage.train.guard import Guard
from tutelage.train.shared import Packed, cheaper, pack_rows, packed_logprobs

Forward = Callable[[Tensor, Tensor], Tensor]
Ptx = Callable[[], dict[str, Tensor]]


class PassConfig(BaseModel):
    """How often a rollout is gone over, and how its answers were sampled."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    epochs: int = Field(1, ge=1)
    """Passes over the rollout."""
    minibatches: int = Field(4, ge=1)
    """Optimiser steps per pass."""
    missing_eos_penalty: float = 1.0
    """Subtracted from the score of a response that did not end."""
    temperature: float = Field(1.0, gt=0)
    """Of the sampler, and of every log-prob."""
    ptx_coef: float = Field(0.3, ge=0)
    """gamma of PPO-ptx: weight of the pretraining loss."""


@dataclass
class Rollout:
    """One update's episodes: tokens, attention [B, T]; mask [B, T-1]; ended [B] (1: the response has its end).

    `group`: answers per prompt, which stand one behind another.
    """

    tokens: Tensor
    attention: Tensor
    mask: Tensor
    ended: Tensor
    sampled: Tensor | None = None
    """The sampler's own log-probs [B, T-1], to be held against the training forward's."""
    group: int = 1
    packs: dict[tuple[int, int], Packed | None] = field(default_factory=dict)
    """Slices whose groups stand behind one prompt each (see `pack_of`)."""


@dataclass
class Actors:
    """Who takes part: (tokens, attention) -> logits [B, T, V] of policy and reference, values [B, T] of the critic, if
    the method has one."""

    policy: Forward
    reference: Forward
    critic: Forward | None = None
    policy_optim: Any = None
    critic_optim: Any = None
    guard: Guard = field(default_factory=Guard)
    """Says which optimiser steps are sound."""
    share_prompts: bool = False
    """Policy and reference are `Logits` that take a group behind one prompt."""


@dataclass
class Judged:
    """What the rollout looks like before the first step, each [B, T-1]; no gradient. `values`: 0 without a critic.

    `open`: the first pass has one minibatch, so that its own forward gives `old` and `entropy` (see grpo.py).
    """

    old: Tensor
    ref: Tensor
    values: Tensor
    entropy: Tensor
    open: bool = False


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


def slices(count: int, minibatches: int) -> Iterator[slice]:
    """`count` rows in at most `minibatches` parts of one size (the last may be smaller)."""
    size = max(1, (count + minibatches - 1) // minibatches)
    return (slice(i, min(count, i + size)) for i in range(0, count, size))


def pack_of(actors: Actors, rollout: Rollout, s: slice) -> Packed | None:
    """The slice's groups behind one prompt each, where the model takes that and it is cheaper; else None."""
    if not actors.share_prompts or rollout.group < 2:
        return None
    key = (s.start, s.stop)
    if key not in rollout.packs:
        tokens, groups = rollout.tokens[s], [i // rollout.group for i in range(s.start, s.stop)]
        pack = pack_rows(tokens, rollout.mask[s], groups)
        worth = pack is not None and cheaper(pack, (len(tokens), tokens.shape[1]), actors.policy.width)  # type: ignore
        rollout.packs[key] = pack if worth else None
    return rollout.packs[key]


def logprobs_of(
    actors: Actors, forward: Any, rollout: Rollout, s: slice | Tensor, temperature: float, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-probs [b, T-1] of some of the rollout's rows, and (without gradient) the entropies where asked for."""
    pack = pack_of(actors, rollout, s) if isinstance(s, slice) else None
    if pack is not None:
        return packed_logprobs(forward, pack, temperature, entropy)
    tokens = rollout.tokens[s]
    logits = forward(tokens, rollout.attention[s])
    found = None
    logp = token_logprobs(logits, tokens, temperature)
    if entropy:
        with torch.no_grad():
            found = entropy_from_logits(logits[:, :-1].float() / temperature)
    return logp, found


@torch.no_grad()
def judge(
    actors: Actors, rollout: Rollout, config: PassConfig, precision: str = "fp32", leave_open: bool = False
) -> Judged:
    """Old and reference log-probs, values and entropies, by the training forward on the update's own minibatches.

    Batch shape alone moves log-probs by 2e-5, and the ratio of the first minibatch has to be exactly 1. Each rank does
    its part of every minibatch and gets the others'. `leave_open`:
    see Judged; the policy's part is then left at 0.
    """
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    with autocast(precision):
        for s in map(own, slices(len(rollout.tokens), config.minibatches)):
            old = entropy = torch.zeros_like(rollout.mask[s])
            if not leave_open:
                old, found = logprobs_of(actors, actors.policy, rollout, s, config.temperature, entropy=True)
                assert found is not None
                entropy = found
            ref, _ = logprobs_of(actors, actors.reference, rollout, s, config.temperature)
            values = torch.zeros_like(old)
            if actors.critic is not None:
                values = actors.critic(rollout.tokens[s], rollout.attention[s])[:, :-1].float()
            parts.append((old, ref, values, entropy))
    # the ranks' parts of a minibatch stand one behind another
    whole = [part for of_ranks in zip(*gather(parts)) for part in of_ranks]
    old, ref, values, entropy = (torch.cat(x) for x in zip(*whole))
    return Judged(old, ref, values, entropy, leave_open)


def current_logprobs(
    actors: Actors,
    rollout: Rollout,
    s: slice | Tensor,
    config: PassConfig,
    precision: str,
    judged: Judged | None = None,
) -> Tensor:
    """The policy's log-probs [b, T-1] of some of the rollout's rows, with gradient. What `judged` left open is
    filled."""
    fill = judged is not None and judged.open
    with autocast(precision):
        logp, entropy = logprobs_of(actors, actors.policy, rollout, s, config.temperature, fill)
    if judged is not None and entropy is not None:
        judged.old[s], judged.entropy[s], judged.open = logp.detach(), entropy, False
    return logp


def pretraining_gradient(actors: Actors, config: PassConfig, ptx: Ptx | None, precision: str) -> dict[str, Tensor]:
    """Add the gradient of gamma * text loss: it is summed with the method's before one step (InstructGPT C.4)."""
    if not config.ptx_coef or ptx is None:
        return {}
    batch = ptx()
    with autocast(precision):
        logits = actors.policy(batch["input_ids"], torch.ones_like(batch["input_ids"]))
        total, count = cross_entropy_sum(logits, batch["labels"])
    if world_size() > 1:
        nats, units = all_sum([float(total.detach()), float(count)])
        (config.ptx_coef * total / units).backward()
        return {"ptx_loss": torch.tensor(nats / units)}
    (config.ptx_coef * total / count).backward()
    return {"ptx_loss": (total / count).detach()}


@dataclass
class Passes:
    """What the optimiser steps of one rollout said: a row of metrics each, its weight (tokens), steps left out."""

    rows: list[dict[str, float]]
    weights: list[float]
    skipped: int

    def means(self) -> dict[str, float]:
        """Weighted means of the rows' metrics."""
        total = max(sum(self.weights), 1.0)
        names = [k for k in (self.rows[0] if self.rows else {}) if k != "ratio_max_dev"]
        return {k: sum(r[k] * w for r, w in zip(self.rows, self.weights)) / total for k in names}


def passes(
    actors: Actors,
    count: int,
    config: PassConfig,
    done: float,
    minibatch: Callable[[slice], tuple[Mapping[str, Any], float]],
) -> Passes:
    """`epochs * minibatches` optimiser steps over `count` rows. `minibatch(rows)` leaves its gradients in the buffers
    and returns its metrics and its weight; `done` in [0, 1) drives the schedule."""
    made = Passes([], [], 0)
    for _ in range(config.epochs):
        for s in slices(count, config.minibatches):
            found, weight = minibatch(s)
            out = dict(found)
            norms = {"grad_norm": actors.policy_optim.clip()}
            if actors.critic_optim is not None:
                norms["value_grad_norm"] = actors.critic_optim.clip()
            sound = actors.guard.sound(norms, s)
            for optimizers in (actors.policy_optim, actors.critic_optim):  # both move, or neither does
                if optimizers is not None:
                    optimizers.move(done) if sound else optimizers.zero_grad()
            out |= norms
            made.skipped += not sound
            made.rows.append({k: float(v) for k, v in out.items()})
            made.weights.append(weight)
    return _joined(gather(made)) if world_size() > 1 else made


def _joined(parts: list[Passes]) -> Passes:
    """The ranks' passes as one process has them: weighted means, the largest ratio."""
    rows = []
    for of_ranks, weights in zip(zip(*(p.rows for p in parts)), zip(*(p.weights for p in parts))):
        total = max(sum(weights), 1.0)
        row = {k: sum(r[k] * w for r, w in zip(of_ranks, weights)) / total for k in of_ranks[0]}
        if "ratio_max_dev" in row:
            row["ratio_max_dev"] = max(r["ratio_max_dev"] for r in of_ranks)
        rows.append(row)
    return Passes(rows, [sum(w) for w in zip(*(p.weights for p in parts))], parts[0].skipped)


def share(rollout: Rollout, s: slice, by_answers: bool = False) -> float:
    """This rank's part of a minibatch, in tokens or answers: the weight of its mean in the minibatch's."""
    mask, mine = rollout.mask[s], rollout.mask[own(s)]
    return len(mine) / len(mask) if by_answers else float(mine.sum()) / max(1.0, float(mask.sum()))


def shared_scores(score: Callable[..., Any], episodes: Any, ref: Tensor) -> tuple[Tensor, dict[str, float]]:
    """`score(episodes, ref)`, each rank scoring its part; an error of one is raised on all."""
    if world_size() == 1:
        return score(episodes, ref)
    mine = own(slice(0, len(ref)))
    found = agreed(lambda: score(episodes.part(mine), ref[mine]))
    sizes = [len(scores) for scores, _ in found]
    means = {k: sum(each[k] * n for (_, each), n in zip(found, sizes)) / sum(sizes) for k in found[0][1]}
    return torch.cat([scores for scores, _ in found]), means


def facts(rollout: Rollout, judged: Judged, kl: Tensor, scores: Tensor, made: Passes) -> dict[str, float]:
    """What is logged of every update: per-token quantities are masked means, `kl` [B, T-1] is summed over an episode's
    tokens, `skipped_steps` counts those that the guard left out."""
    mask = rollout.mask
    lengths = mask.sum(1)
    out = {
        "kl": float(kl.sum(1).mean()),
        "entropy": float(masked_mean(judged.entropy, mask)),
        "length": float(lengths.mean()),
        "eos_rate": float(rollout.ended.mean()),
        "optimizer_steps": len(made.rows),
        "skipped_steps": made.skipped,
        "length_reward_correlation": correlation(lengths.tolist(), scores.tolist()),
    }
    if made.rows and "ratio_max_dev" in made.rows[0]:
        out["first_ratio_deviation"] = made.rows[0]["ratio_max_dev"]
    if rollout.sampled is not None:
        out["sampler_gap"] = float(masked_mean((judged.old - rollout.sampled).abs(), mask))
    return {**out, **made.means()}
