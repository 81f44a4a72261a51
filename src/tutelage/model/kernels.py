"""Attention with its log-sum-exp, by what PyTorch ships for the device; and the same with gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


class Unsupported(Exception):
    """A model asks its attention for something that a plan cannot honour; the message names it."""


@dataclass(frozen=True)
class How:
    """What a layer asks of its attention."""

    scale: float
    window: int | None = None
    softcap: float | None = None
    dropout: float = 0.0
    sinks: bool = False


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


SHORT = 256
"""Keys up to which plain products train quicker in bf16 on a CPU than the flash kernel, whose backward is slow: forward
and backward of 4 heads of width 64 took 13 ms against 39 at 40 texts of 64 tokens, 16 against 36 at 16 of 128, 21
against 24 at 8 of 256, and 56 against 39 at 4 of 512 (processor time of one core with AMX)."""


def trainable(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: bool, how: How
) -> tuple[Tensor, Tensor]:
    """As attention_with_lse with gradients and dropout; the log-sum-exp is real only where a layer has sinks."""
    if how.softcap is None and not how.sinks:
        half = query.device.type == "cpu" and query.dtype == torch.bfloat16
        if half and key.shape[2] <= SHORT and not how.dropout:
            return _short(query, key, value, bias, causal, how.scale), query.new_zeros(query.shape[:3])
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, bias, how.dropout, causal, scale=how.scale, enable_gqa=query.shape[1] != key.shape[1]
        )
        return out, query.new_zeros(query.shape[:3])
    if how.dropout:
        raise Unsupported("attention dropout beside softcap or sinks")
    return _by_matmul(query, key, value, bias, causal, how.scale, how.softcap)


def _short(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: bool, scale: float
) -> Tensor:
    """Attention in plain products of the query's own type, the softmax in float32."""
    repeat = query.shape[1] // key.shape[1]
    if repeat > 1:
        key, value = (x.repeat_interleave(repeat, 1) for x in (key, value))
    scores = torch.matmul(query * scale, key.transpose(2, 3))
    if bias is not None:
        scores = scores + bias
    if causal:
        scores = scores + _ahead(scores)
    return torch.matmul(scores.softmax(-1, dtype=torch.float32).to(value.dtype), value)


def _ahead(scores: Tensor) -> Tensor:
    """-inf where a key stands behind its query [T, L]."""
    return torch.full(scores.shape[2:], -math.inf, dtype=scores.dtype, device=scores.device).triu(1)


def _by_matmul(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: bool, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """The same in plain matrix products, in float32 (autocast would take the products to bfloat16)."""
    with torch.autocast(query.device.type, enabled=False):
        return _products(query, key, value, bias, causal, scale, softcap)


def _products(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: bool, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    repeat = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeat, 1).float() for x in (key, value))
    scores = torch.matmul(query.float(), key.transpose(2, 3)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    if causal:
        scores = scores + _ahead(scores)
    lse = scores.logsumexp(-1)
    weights = torch.exp(scores - lse.masked_fill(lse == -math.inf, 0.0)[..., None])
    return torch.matmul(weights, value), lse
