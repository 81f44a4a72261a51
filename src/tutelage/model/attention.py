"""The attention plug-in: one function behind `transformers.AttentionInterface` for shared prefixes and slot decoding.

A forward takes the new tokens of any number of sequences as ONE row of N tokens, so no linear layer computes padding.
What each of them attends to is a `Plan`: its own span first, then any number of further parts (a prefix that many
share, kept keys of an earlier forward). Each part is one attention call with its log-sum-exp, and the parts of a token
are merged by it, which is exact: softmax over a union is the lse-weighted mean of the softmaxes over its pieces.

The CPU kernel's log-sum-exp has no gradient, so parts are merged in inference alone; in training a plan holds own spans
only (`packed`: documents one behind another, no padding). Without a plan the function is transformers' own sdpa.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tutelage.model.forward import attention_as

NAME = "tutelage"
"""As `config._attn_implementation`. Names with "sdpa", "flash" or "flex" in them are dispatched specially."""

_HONOURED = {"sliding_window", "softcap", "s_aux"}
_HARMLESS = {
    "attention_mask", "cache", "cache_position", "cu_seq_lens_k", "cu_seq_lens_q", "dropout", "head_mask",
    "is_causal", "kwargs", "layer_head_mask", "layer_idx", "logits_to_keep", "max_length_k", "max_length_q",
    "num_items_in_batch", "output_attentions", "output_hidden_states", "output_router_logits", "past_key_values",
    "position_embeddings", "position_ids", "return_dict", "seq_idx", "target_dtype", "use_cache",
}  # fmt: skip


class Unsupported(Exception):
    """A model asks its attention for something that a plan cannot honour; the message names it."""


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
            out, lse = _trainable(query, keys, values, bias, causal, how)
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
            return (None if self.mask is None else _additive(self.mask, query.dtype)), None, self.causal
        assert self.query_positions is not None and self.key_positions is not None
        near = self.query_positions[:, None, :, None] - self.key_positions[:, None, None, :] < window
        seen = near if self.mask is None else near & self.mask
        if self.causal:  # by place, not position: padding at the right stands behind every real token
            seen = seen & torch.ones(seen.shape[2:], dtype=torch.bool, device=seen.device).tril()
        blind = ~seen.any(-1)
        return _additive(seen, query.dtype), (blind if bool(blind.any()) else None), False


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where seen, -inf elsewhere; the kernels want the query's dtype."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -math.inf)


@dataclass(frozen=True)
class How:
    """What a layer asks of its attention."""

    scale: float
    window: int | None = None
    softcap: float | None = None
    dropout: float = 0.0
    sinks: bool = False


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
    mixed = out_NHD[to] * torch.exp(old - both)[..., None]
    out_NHD[to] = torch.addcmul(mixed, part_MHD.float(), torch.exp(weight_MH.float() - both)[..., None])
    lse_NH[to] = both


def attention_with_lse(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: bool, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """softmax(query key^T scale + bias) value and its log-sum-exp.

    query [G, H, T, d], key and value [G, Hkv, L, d or dv] with Hkv dividing H, bias additive. Returns out [G, H, T, dv]
    and lse [G, H, T] (0 for a query that sees nothing on some kernels). With T = 1 a group's heads become queries.
    """
    heads, shared = query.shape[1], key.shape[1]
    if query.shape[2] == 1 and heads != shared:
        packed = query.reshape(query.shape[0], shared, heads // shared, query.shape[3])
        out, lse = attention_with_lse(packed, key, value, bias, False, scale, softcap)
        return out.reshape(out.shape[0], heads, 1, out.shape[-1]), lse.reshape(lse.shape[0], heads, 1)
    plain = softcap is None and query.shape[-1] == value.shape[-1]
    if plain and query.device.type == "cpu" and query.dtype in (torch.float32, torch.bfloat16):
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return flash(query, key, value, 0.0, causal, attn_mask=bias, scale=scale)
    half = query.dtype in (torch.float16, torch.bfloat16)
    if plain and query.is_cuda and half and bias is None and query.shape[-1] <= 256:
        key, value = (x.repeat_interleave(heads // shared, 1) for x in (key, value))
        out = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, False, scale=scale)
        return out[0], out[1]
    return _by_matmul(query, key, value, bias, causal, scale, softcap)


def _trainable(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: bool, how: How
) -> tuple[Tensor, Tensor]:
    """As attention_with_lse with gradients and dropout; the log-sum-exp is real only where a layer has sinks."""
    if how.softcap is None and not how.sinks:
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, bias, how.dropout, causal, scale=how.scale, enable_gqa=query.shape[1] != key.shape[1]
        )
        return out, query.new_zeros(query.shape[:3])
    if how.dropout:
        raise Unsupported("attention dropout beside softcap or sinks")
    return _by_matmul(query, key, value, bias, causal, how.scale, how.softcap)


def _by_matmul(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: bool, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """The same in plain matrix products, in at least fp32."""
    repeat = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeat, 1).float() for x in (key, value))
    scores = torch.matmul(query.float(), key.transpose(2, 3)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    if causal:
        ahead = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(ahead, -math.inf)
    lse = scores.logsumexp(-1)
    weights = torch.exp(scores - lse.masked_fill(lse == -math.inf, 0.0)[..., None])
    return torch.matmul(weights, value), lse


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


class _Current(threading.local):
    plan: Plan | None = None
    calls: int = 0


_CURRENT = _Current()


@contextmanager
def using(model: Any, plan: Plan) -> Iterator[_Current]:
    """Within: forwards of `model` in this thread follow the plan. The object given counts the attention calls."""
    outer, _CURRENT.plan, _CURRENT.calls = _CURRENT.plan, plan, 0
    try:
        with attention_as(model, NAME):
            yield _CURRENT
    finally:
        _CURRENT.plan = outer


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None = None,
    dropout: float = 0.0, sliding_window: int | None = None, softcap: float | None = None, s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' attention function: query [B, H, T, d], key and value [B, Hkv, T, d] -> (out [B, T, H, dv], None).

    Raises Unsupported, naming it, when a layer passes something that a plan cannot honour.
    """
    if torch.compiler.is_compiling():  # only forwards under a plan are compiled (engine/compiled.py)
        _refuse(module, query, kwargs)
        scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        out = torch.ops.tutelage.attend(query, key, value, module.layer_idx, scale, sliding_window, softcap, s_aux)
        return out, None
    plan = _CURRENT.plan
    if plan is None:
        extra: dict[str, Any] = {k: v for k, v in (("softcap", softcap), ("s_aux", s_aux)) if v is not None}
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, sliding_window=sliding_window,
            **extra, **kwargs,
        )  # fmt: skip
        return out, None
    _refuse(module, query, kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    how = How(scale, sliding_window, softcap, dropout, s_aux is not None)
    return _run(plan, query, key, value, module.layer_idx, how, s_aux), None


def _refuse(module: Any, query: Tensor, kwargs: dict[str, Any]) -> None:
    if odd := sorted(k for k, v in kwargs.items() if v is not None and k not in _HARMLESS):
        raise Unsupported(f"{type(module).__name__} passes {', '.join(odd)} to its attention")
    if query.shape[0] != 1:
        raise Unsupported(f"{type(module).__name__} reshapes the batch")


def _run(plan: Plan, query: Tensor, key: Tensor, value: Tensor, layer: int, how: How, sinks: Tensor | None) -> Tensor:
    _CURRENT.calls += 1
    return plan.run(layer, query[0], key[0], value[0], how, sinks)[None]


def _attend_op(
    query: Tensor, key: Tensor, value: Tensor, layer: int, scale: float, window: int | None, softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:  # fmt: skip
    """The plug-in as one opaque operator of a compiled forward: the plan is this thread's current one."""
    assert _CURRENT.plan is not None
    return _run(_CURRENT.plan, query, key, value, layer, How(scale, window, softcap), sinks).contiguous()


_LIBRARY = torch.library.Library("tutelage", "DEF")
_LIBRARY.define(
    "attend(Tensor q, Tensor k, Tensor v, int layer, float scale, int? window, float? softcap, Tensor? sinks) -> Tensor"
)
# no autograd key: plans are for inference, and torch.library.custom_op would cost 30 microseconds a call for one
_LIBRARY.impl("attend", _attend_op, "CPU")
_LIBRARY.impl("attend", _attend_op, "CUDA")


@torch.library.register_fake("tutelage::attend")
def _attend_shape(query: Tensor, key: Tensor, value: Tensor, *more: Any) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """No mask under a plan, else sdpa's (a name without a mask function would lose padding silently)."""
    if torch.compiler.is_compiling() or _CURRENT.plan is not None:
        return None
    return sdpa_mask(*args, **kwargs)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, _mask)
