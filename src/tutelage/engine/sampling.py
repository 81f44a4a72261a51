"""Vectorised sampling: every row of a batch has its own temperature, truncation, bans and seed, without row loops.

Randomness is a counter-based uniform for each (seed, position), turned into a token by the inverse CDF. A row's draw
therefore depends on nothing but its own seed, position and logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tutelage.engine.requests import SamplingParams


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


_MASK = (1 << 64) - 1
_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX1 = _signed(0xBF58476D1CE4E5B9)
_MIX2 = _signed(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    # int64 shifts are arithmetic; the mask makes them logical
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64 (wrapping) values: a bijection whose outputs look independent."""
    x = (x ^ _shift_right(x, 30)) * _MIX1
    x = (x ^ _shift_right(x, 27)) * _MIX2
    return x ^ _shift_right(x, 31)


def derive_seed(seed: int, index: int) -> int:
    """A seed for the ``index``-th sample of a request seeded ``seed``; index 0 keeps the seed."""
    if index == 0:
        return _signed(seed)
    # the same mixing as ``mix`` on one Python integer, which is quicker than a tensor of one
    x = (seed * 31 + index * _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * (_MIX1 & _MASK)) & _MASK
    x = ((x ^ (x >> 27)) * (_MIX2 & _MASK)) & _MASK
    return _signed(x ^ (x >> 31))


def uniforms(seeds_B: Tensor, position: int | Tensor) -> Tensor:
    """Uniforms [B] in [0, 1) with 24 bits for int64 seeds [B] at token number ``position`` of each completion (one for
    all, or int64 [B])."""
    step = (position + 1) * _GOLDEN  # a tensor's product wraps, as a counter should
    counter = mix(seeds_B) + (step if isinstance(step, Tensor) else _signed(step))
    return _shift_right(mix(counter), 40).float() * 2.0**-24


def _divisor(temperature: float) -> float:
    """What logits are divided by: 1 for greedy rows, and nothing so small that they overflow."""
    return max(temperature, 1e-6) if temperature else 1.0


@dataclass
class RowParams:
    """Sampling parameters of the rows of a batch as tensors [B]; ``None`` where no row uses the feature."""

    seeds: Tensor
    temperature: Tensor
    greedy: Tensor | None
    all_greedy: bool
    top_k: Tensor | None
    top_p: Tensor | None
    min_p: Tensor | None
    penalty: Tensor | None
    bias: Tensor | None

    @classmethod
    def build(
        cls, params: Sequence[SamplingParams], seeds: Sequence[int], vocab: int, device: torch.device
    ) -> RowParams:
        """Rows in the order of ``params``; ``seeds`` one for each row; ``vocab`` the logits' width."""
        # a rollout's rows share one object, so each distinct object is read only once
        kinds = {id(p): p for p in params}.values()

        def tensor(get, off):  # type: ignore[no-untyped-def]
            if all(get(p) == off for p in kinds):
                return None
            return torch.tensor([get(p) for p in params], device=device)

        greedy = torch.tensor([p.temperature == 0 for p in params], device=device)
        any_greedy = any(p.temperature == 0 for p in kinds)
        return cls(
            seeds=torch.tensor([_signed(s) for s in seeds], dtype=torch.int64, device=device),
            temperature=torch.tensor([_divisor(p.temperature) for p in params], device=device)[:, None],
            greedy=greedy if any_greedy else None,
            all_greedy=all(p.temperature == 0 for p in kinds),
            top_k=tensor(lambda p: p.top_k, 0),
            top_p=tensor(lambda p: float(p.top_p), 1.0),
            min_p=tensor(lambda p: float(p.min_p), 0.0),
            penalty=tensor(lambda p: float(p.repetition_penalty), 1.0),
            bias=_bias(params, vocab, device),
        )

    def select(self, rows: Tensor) -> RowParams:
        """Only the given rows (int64 indices)."""
        kept: dict[str, Any] = {k: v[rows] if isinstance(v, Tensor) else v for k, v in self.__dict__.items()}
        return RowParams(**kept)


def _bias(params: Sequence[SamplingParams], vocab: int, device: torch.device) -> Tensor | None:
    if not any(p.banned_tokens or p.logit_bias for p in {id(p): p for p in params}.values()):
        return None
    made: dict[int, Tensor] = {}
    for p in params:
        if id(p) in made:
            continue
        row = torch.zeros(vocab)
        for token, value in (p.logit_bias or {}).items():
            row[token] += value
        if p.banned_tokens:
            row[list(p.banned_tokens)] = float("-inf")
        made[id(p)] = row
    if len(made) == 1:
        return next(iter(made.values())).to(device).expand(len(params), vocab)
    return torch.stack([made[id(p)] for p in params]).to(device)


def penalise(logits_BV: Tensor, seen_BV: Tensor, penalty_B: Tensor) -> Tensor:
    """Repetition penalty (Keskar et al. 2019): positive logits of seen tokens are divided by it, others multiplied."""
    penalty = penalty_B[:, None]
    changed = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return torch.where(seen_BV, changed, logits_BV)


def _inverse_cdf(probs_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    cdf = probs_BV.cumsum(-1)
    # 24-bit uniforms keep the target strictly below the total, so a token of probability zero is never chosen
    target = uniforms_B[:, None] * cdf[:, -1:]
    return torch.searchsorted(cdf, target, right=True).squeeze(-1).clamp(max=probs_BV.shape[1] - 1)


def _kept(logits_BV: Tensor, rows: RowParams) -> Tensor:
    """Mask [B, V] of what top-k, then top-p, then min-p leave, each of the distribution the ones before left."""
    ordered, index = logits_BV.sort(dim=-1, descending=True, stable=True)
    probs = ordered.softmax(-1)
    kept = torch.ones_like(probs, dtype=torch.bool)
    if rows.top_k is not None:
        rank = torch.arange(probs.shape[1], device=probs.device)
        limit = torch.where(rows.top_k > 0, rows.top_k, probs.shape[1])
        kept = rank < limit[:, None]
        probs = probs * kept
    if rows.top_p is not None:
        before = probs.cumsum(-1) - probs
        # rows with top_p 1 keep everything, whatever rounding did to the sum
        kept = kept & ((before < rows.top_p[:, None] * probs.sum(-1, keepdim=True)) | (rows.top_p[:, None] >= 1))
    if rows.min_p is not None:
        kept = kept & (probs >= rows.min_p[:, None] * probs[:, :1])
    # back in vocabulary order, so that a row draws the same token whether or not its neighbours truncate
    return torch.zeros_like(kept).scatter_(-1, index, kept)


def sample(
    logits_BV: Tensor, rows: RowParams, position: int | Tensor, seen_BV: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Next tokens [B] and their log-probs [B] from float32 logits [B, V]; ``position``: see ``uniforms``.

    The log-probs are of the temperature-scaled distribution BEFORE bans, biases, repetition penalty and truncation:
    what a training forward of the same tokens at the same temperature gives. ``seen_BV``: tokens of prompt and
    completion so far, needed only with a repetition penalty.
    """
    raw = logits_BV if rows.all_greedy else logits_BV / rows.temperature
    normaliser = raw.logsumexp(-1, keepdim=True)
    scores = logits_BV
    if rows.penalty is not None and seen_BV is not None:
        scores = penalise(scores, seen_BV, rows.penalty)
    if rows.bias is not None:
        scores = scores + rows.bias
    changed = scores is not logits_BV
    if rows.all_greedy:
        tokens = scores.argmax(-1)
    else:
        scaled = scores / rows.temperature if changed else raw
        probs = scaled.softmax(-1) if changed else (raw - normaliser).exp()
        if rows.top_k is not None or rows.top_p is not None or rows.min_p is not None:
            probs = probs * _kept(scaled, rows)
        tokens = _inverse_cdf(probs, uniforms(rows.seeds, position))
        if rows.greedy is not None:
            tokens = torch.where(rows.greedy, scores.argmax(-1), tokens)
    logprobs = (raw.gather(-1, tokens[:, None]) - normaliser).squeeze(-1)
    return tokens, logprobs
