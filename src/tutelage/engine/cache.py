"""A key-value cache that is written in place.

transformers' DynamicCache concatenates, so each step copies the whole cache; its StaticCache attends over the longest
length from the first step. This one allocates once and shows attention only what is filled.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer


class BufferLayer(DynamicLayer):
    """One layer's keys and values [B, heads, capacity, head_dim], of which the first ``length`` are filled."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append [B, heads, T, head_dim] and return views of everything so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            batch, heads, _, width = key_states.shape
            self.key_buffer = key_states.new_empty(batch, heads, self.capacity, width)
            self.value_buffer = value_states.new_empty(batch, heads, self.capacity, value_states.shape[-1])
        end = self.length + key_states.shape[2]
        if end > self.capacity:
            raise RuntimeError(f"the key-value cache holds {self.capacity} tokens, {end} are needed")
        self.key_buffer[:, :, self.length : end] = key_states
        self.value_buffer[:, :, self.length : end] = value_states
        self.length = end
        self.keys = self.key_buffer[:, :, :end]
        self.values = self.value_buffer[:, :, :end]
        return self.keys, self.values

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) the given batch rows."""
        for name in ("key_buffer", "value_buffer"):
            old = getattr(self, name)
            new = old.new_empty(len(rows), *old.shape[1:])
            # only the filled part is copied
            new[:, :, : self.length] = old[:, :, : self.length].index_select(0, rows)
            setattr(self, name, new)
        self.keys = self.key_buffer[:, :, : self.length]
        self.values = self.value_buffer[:, :, : self.length]

    def get_seq_length(self, *args: Any) -> int:
        return self.length


def make_cache(config: Any, capacity: int) -> DynamicCache:
    """A cache for ``capacity`` tokens: in place where every layer is full attention, else transformers' own."""
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(config.get_text_config(), "sliding_window", None):
        return DynamicCache(config=config)
    cache = DynamicCache()
    cache.layers = [BufferLayer(capacity) for _ in range(config.get_text_config().num_hidden_layers)]
    return cache


def make_pair_cache(capacity: int) -> EncoderDecoderCache:
    """For an encoder-decoder: ``capacity`` decoder tokens in place, and the cross-attention's keys as they come."""
    own = DynamicCache()
    own.layer_class_to_replicate = functools.partial(BufferLayer, capacity)  # type: ignore[assignment]
    return EncoderDecoderCache(own, DynamicCache())


def select_rows(cache: DynamicCache, rows: Tensor) -> None:
    """Keep (or repeat) the given batch rows (int64 indices) in every layer."""
    layers: list[Any] = cache.layers
    for layer in layers:
        if isinstance(layer, BufferLayer):
            layer.select(rows)
        else:
            # beams are rows too: this selects keys, values and recurrent states alike
            layer.reorder_cache(rows)
