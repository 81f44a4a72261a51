"""The attention plug-in: one function behind `transformers.AttentionInterface` that follows a plan (plans.py).

Without a plan it is transformers' own sdpa.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tutelage.model.forward import attention_as, plain_model
from tutelage.model.kernels import How, Unsupported
from tutelage.model.plans import Plan

NAME = "tutelage"
"""As `config._attn_implementation`. Names with "sdpa", "flash" or "flex" in them are dispatched specially."""

_HARMLESS = {
    "attention_mask", "cache", "cache_position", "cu_seq_lens_k", "cu_seq_lens_q", "dropout", "head_mask",
    "is_causal", "kwargs", "layer_head_mask", "layer_idx", "logits_to_keep", "max_length_k", "max_length_q",
    "num_items_in_batch", "output_attentions", "output_hidden_states", "output_router_logits", "past_key_values",
    "position_embeddings", "position_ids", "return_dict", "seq_idx", "target_dtype", "use_cache",
}  # fmt: skip


class _Current(threading.local):
    plan: Plan | None = None
    calls: int = 0
    windows: int = 0
    """Calls of layers with a sliding window."""


_CURRENT = _Current()


@contextmanager
def using(model: Any, plan: Plan) -> Iterator[_Current]:
    """Within: forwards of `model` in this thread follow the plan. The object given counts the attention calls."""
    outer, _CURRENT.plan, _CURRENT.calls, _CURRENT.windows = _CURRENT.plan, plan, 0, 0
    try:
        with attention_as(model, NAME):
            yield _CURRENT
    finally:
        _CURRENT.plan = outer


def recompute_activations(model: Any) -> None:
    """Gradient checkpointing: a layer's activations are made again in the backward pass, by the forward's own plan.

    ValueError where transformers does not know how for this family.
    """

    def contexts() -> tuple[Any, Any]:
        plan = _CURRENT.plan
        return nullcontext(), nullcontext() if plan is None else using(model, plan)

    how = {"use_reentrant": False, "context_fn": contexts}
    plain_model(model).gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)


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
    _CURRENT.windows += how.window is not None
    # autocast's dtype for all three where that is on, as for sdpa: norms of queries and keys leave float32 there
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    return plan.run(layer, query[0], key[0], value[0], how, sinks)[None]


def _attend_op(
    query: Tensor, key: Tensor, value: Tensor, layer: int, scale: float, window: int | None, softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:  # fmt: skip
    """The plug-in as one opaque operator of a compiled forward: the plan is this thread's current one."""
    assert _CURRENT.plan is not None
    out = _run(_CURRENT.plan, query, key, value, layer, How(scale, window, softcap), sinks)
    return out.to(query.dtype).contiguous()  # as promised below: under autocast the plan's own is another


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
