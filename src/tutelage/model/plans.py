"""What the tokens of one forward attend to: blocks, each one attention call, merged by their log-sum-exp.

A forward takes the new tokens of any number of sequences as ONE row of N tokens, so no linear layer computes padding.
What each of them attends to is a `Plan`: its own span first, then any number of further parts (a prefix that many
share, kept keys of an earlier forward). Each part is one attention call with its log-sum-exp, and the parts of a token
are merged by it, which is exact: softmax over a union is the lse-weighted mean of the softmaxes over its pieces.

The CPU kernel's log-sum-exp has no gradient, so parts are merged in inference alone; in training a plan holds own spans
only (`packed`: documents one behind another, no padding).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tutelage.model.kernels import How, Unsupported, attention_with_lse, trainable


class Keys(Protocol):
    """Where a block's keys and values come from."""

    def get(self, layer: int, key_HND: Tensor, value_HND: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [G, Hkv, L, d] of `layer`; those of the forward's own tokens are given."""
        ...


@dataclass
class NewKeys:
    """Tokens of this very forward: a slice (G = 1), or their numbers [G, L]."""

    index: slice | Tensor

    def get(self, layer: int, key_HND: Tensor, value_HND: Tensor) -> tuple[Tensor, Tensor]:
        """See Keys."""
        if isinstance(self.index, slice):
            return key_HND[None, :, self.index], value_HND[None, :, self.index]
        groups, length = self.index.shape
        flat = self.index.reshape(-1)
        return tuple(
            x.index_select(1, flat).view(x.shape[0], groups, length, x.shape[2]).transpose(0, 1)
            for x in (key_HND, value_HND)
        )  # type: ignore[return-value]


@dataclass
class StoredKeys:
    """A span of an earlier forward: per layer keys and values [Hkv, L, d]."""

    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def get(self, layer: int, key_HND: Tensor, value_HND: Tensor) -> tuple[Tensor, Tensor]:
        """See Keys."""
        key, value = self.layers[layer]
        return key[None], value[None]

    def save(self, layer: int, key_HND: Tensor, value_HND: Tensor, span: slice) -> None:
        """Keep a span of a forward's tokens."""
        self.layers[layer] = (
            key_HND[:, span].clone(memory_format=torch.contiguous_format),
            value_HND[:, span].clone(memory_format=torch.contiguous_format),
        )


class StackedKeys:
    """Copies of spans of earlier forwards side by side, [G, Hkv, L, d] with zeros behind the shorter ones. Copies, as
    views of a stack would keep all of it alive for the last span that is needed."""

    def __init__(self, spans: Sequence[StoredKeys]) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        for layer in spans[0].layers:
            keys, values = (_stack([span.layers[layer][i] for span in spans]) for i in (0, 1))
            self.layers[layer] = keys, values

    def get(self, layer: int, key_HND: Tensor, value_HND: Tensor) -> tuple[Tensor, Tensor]:
        """See Keys."""
        return self.layers[layer]


def _stack(parts_HLD: Sequence[Tensor]) -> Tensor:
    first, longest = parts_HLD[0], max(part.shape[1] for part in parts_HLD)
    stack = first.new_zeros(len(parts_HLD), first.shape[0], longest, first.shape[2])
    for place, part in zip(stack, parts_HLD):
        place[:, : part.shape[1]] = part
    return stack


@dataclass
class Block:
    """One attention call: G groups of T queries against G groups of L keys.

    queries: numbers of the forward's tokens [G, T], or a slice of them (G = 1; with `single`, G = its length, T = 1).
    rows: which of the G*T places are real, None for all; numbers there may be anything.
    causal: query t sees keys 0..t (then T = L). mask: bool, broadcastable to [G, 1, T, L], True where a query may look.
    query_positions [G, T], key_positions [G, L]: for models with sliding windows.
    """

    queries: slice | Tensor
    keys: Keys
    causal: bool = False
    mask: Tensor | None = None
    rows: Tensor | None = None
    single: bool = False
    query_positions: Tensor | None = None
    key_positions: Tensor | None = None
    _bias: dict[Any, tuple[Tensor | None, Tensor | None, bool]] = field(default_factory=dict)

    def targets(self) -> slice | Tensor:
        """The tokens whose results this block gives, in the order of its real places."""
        if isinstance(self.queries, slice):
            return self.queries
        flat = self.queries.reshape(-1)
        return flat if self.rows is None else flat[self.rows]

    def run(self, layer: int, query_HND: Tensor, key: Tensor, value: Tensor, how: How) -> tuple[Tensor, Tensor]:
        """(out [M, H, dv], lse [M, H]) of the block's M real places."""
        if isinstance(self.queries, slice):
            part = query_HND[:, self.queries]
            query = part.transpose(0, 1)[:, :, None] if self.single else part[None]
        else:
            groups, length = self.queries.shape
            flat = query_HND.index_select(1, self.queries.reshape(-1))
            query = flat.view(flat.shape[0], groups, length, flat.shape[2]).transpose(0, 1)
        keys, values = self.keys.get(layer, key, value)
        bias, blind, causal = self._masks(how.window, query)
        if torch.is_grad_enabled() and query.requires_grad:
            out, lse = trainable(query, keys, values, bias, causal, how)
        else:
            out, lse = attention_with_lse(query, keys, values, bias, causal, how.scale, how.softcap)
        if blind is not None:  # a row that sees no key: the kernels return lse 0 there, not -inf
            lse = lse.masked_fill(blind, -math.inf)
        groups, heads, length = lse.shape
        out = out.transpose(1, 2).reshape(groups * length, heads, out.shape[-1])
        lse = lse.transpose(1, 2).reshape(groups * length, heads)
        return (out, lse) if self.rows is None else (out[self.rows], lse[self.rows])

    def _masks(self, window: int | None, query: Tensor) -> tuple[Tensor | None, Tensor | None, bool]:
        """(additive mask, rows [G, 1, T] that see nothing, causal) for a window, made once for all layers."""
        key = (window, query.dtype)
        if key not in self._bias:
            reaches = window is not None and self._outside(window)
            self._bias[key] = self._make(window if reaches else None, query)
        return self._bias[key]

    def _outside(self, window: int) -> bool:
        """Whether any query may stand `window` or more behind a key."""
        if self.query_positions is None or self.key_positions is None:
            raise Unsupported("sliding_window: this plan has no positions")
        return int(self.query_positions.max()) - int(self.key_positions.min()) >= window

    def _make(self, window: int | None, query: Tensor) -> tuple[Tensor | None, Tensor | None, bool]:
        if window is None:
            if self.mask is None:
                return None, None, self.causal
            return _additive(self.mask, query.dtype), _blind(self.mask), self.causal
        assert self.query_positions is not None and self.key_positions is not None
        near = self.query_positions[:, None, :, None] - self.key_positions[:, None, None, :] < window
        seen = near if self.mask is None else near & self.mask
        if self.causal:  # by place, not position: padding at the right stands behind every real token
            seen = seen & torch.ones(seen.shape[2:], dtype=torch.bool, device=seen.device).tril()
        return _additive(seen, query.dtype), _blind(seen), False


def _blind(seen: Tensor) -> Tensor | None:
    """The queries [G, 1, T] that see no key, None if there is none."""
    blind = ~seen.any(-1)
    return blind if bool(blind.any()) else None


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where seen, -inf elsewhere; the kernels want the query's dtype."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -math.inf)


@dataclass
class Plan:
    """What the N tokens of one forward attend to.

    own: blocks that together give every token exactly once (its own span). more: further parts, merged in order.
    keepers: called with (layer, key [Hkv, N, d], value) before any attention; they store what later forwards need.
    """

    own: Sequence[Block]
    more: Sequence[Block] = ()
    keepers: Sequence[Any] = ()
    _back: Tensor | None = None

    def run(self, layer: int, query_HND: Tensor, key: Tensor, value: Tensor, how: How, sinks: Any) -> Tensor:
        """Attention output [N, H, dv]."""
        for keep in self.keepers:
            keep(layer, key, value)
        out, lse = self._own(layer, query_HND, key, value, how)
        for block in self.more:
            part, weight = block.run(layer, query_HND, key, value, how)
            _merge(out, lse, part, weight, block.targets())
        if sinks is not None:  # a learnt logit in the denominator: a part with no value
            lse = lse.float()
            out = out * torch.exp(lse - torch.logaddexp(lse, sinks.float()[None]))[..., None]
        return out.to(query_HND.dtype)

    def _own(self, layer: int, query_HND: Tensor, key: Tensor, value: Tensor, how: How) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() and query_HND.requires_grad:
            return self._trained(layer, query_HND, key, value, how)
        count = query_HND.shape[1]
        first = self.own[0]
        if len(self.own) == 1 and isinstance(first.queries, slice):
            out, lse = first.run(layer, query_HND, key, value, how)
            return (out.float(), lse) if self.more else (out, lse)
        heads, width = query_HND.shape[0], value.shape[2]
        out = query_HND.new_empty(count, heads, width, dtype=torch.float32)
        lse = query_HND.new_empty(count, heads, dtype=torch.float32)
        for block in self.own:
            to = block.targets()
            part, weight = block.run(layer, query_HND, key, value, how)
            out[to], lse[to] = part.float(), weight.float()
        return out, lse

    def _trained(self, layer: int, query_HND: Tensor, key: Tensor, value: Tensor, how: How) -> tuple[Tensor, Tensor]:
        """Own spans alone, with gradients: concatenated and put in order, nothing written in place."""
        if self.more:
            raise Unsupported("a plan with shared parts has no gradient")
        if len(self.own) == 1 and isinstance(self.own[0].queries, slice):
            return self.own[0].run(layer, query_HND, key, value, how)
        if self._back is None:
            places = torch.arange(query_HND.shape[1], device=query_HND.device)
            self._back = torch.cat([places[block.targets()] for block in self.own]).argsort()
        found = [block.run(layer, query_HND, key, value, how) for block in self.own]
        out, lse = (torch.cat(x).index_select(0, self._back) for x in zip(*found))
        return out, lse


def _merge(out_NHD: Tensor, lse_NH: Tensor, part_MHD: Tensor, weight_MH: Tensor, to: slice | Tensor) -> None:
    """Merge M results into those of the tokens `to`, in place."""
    old = lse_NH[to]
    both = torch.logaddexp(old, weight_MH.float())
    sure = both.clamp(min=torch.finfo(both.dtype).min)  # -inf where neither part sees a key: -inf - -inf is NaN
    mixed = out_NHD[to] * torch.exp(old - sure)[..., None]
    out_NHD[to] = torch.addcmul(mixed, part_MHD.float(), torch.exp(weight_MH.float() - sure)[..., None])
    lse_NH[to] = both


def packed(lengths: Sequence[int], device: torch.device | None = None) -> Plan:
    """Documents of the given lengths one behind another in one row [1, sum], none seeing another; for training too.

    Documents of like length share one call, padded to the longest of them inside attention alone.
    """
    begins = np.concatenate([[0], np.cumsum(lengths)])
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    groups: list[list[int]] = []
    for i in order:
        first = lengths[groups[-1][0]] if groups else 0
        if not groups or lengths[i] > max(1.25 * first, first + 8):
            groups.append([])
        groups[-1].append(i)
    blocks = []
    for group in groups:
        sizes = np.array([lengths[i] for i in group])
        place = np.arange(sizes.max())
        real = place < sizes[:, None]
        numbers = torch.from_numpy(np.where(real, begins[group][:, None] + place, 0)).to(device)
        rows = None if real.all() else torch.from_numpy(np.flatnonzero(real)).to(device)
        where = torch.from_numpy(np.broadcast_to(place, real.shape).copy()).to(device)
        blocks.append(
            Block(numbers, NewKeys(numbers), causal=True, rows=rows, query_positions=where, key_positions=where)
        )
    return Plan(blocks)
