"""Calling models of many families with the same keyword arguments."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@functools.lru_cache(maxsize=64)
def _names(kind: Any) -> frozenset[str]:
    return frozenset(inspect.signature(kind.forward).parameters)


def plain_model(model: Any) -> Any:
    """The transformers model inside a peft wrapper, else the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def vocabulary(model: Any) -> int:
    """Tokens of the model's table of embeddings, whatever adapter wraps it."""
    table = model.get_input_embeddings()
    return int(getattr(table, "num_embeddings", None) or table.weight.shape[0])


def learned_prompt(model: Any) -> Any | None:
    """Peft's config of a model that puts virtual tokens before every text (prompt tuning and the like), else None."""
    config = getattr(model, "active_peft_config", None)
    return config if getattr(config, "is_prompt_learning", False) else None


def call(model: nn.Module, /, **kwargs: Any) -> Any:
    """``model(**kwargs)`` with optional arguments dropped that its forward does not name (Bloom takes no positions).

    ``cache`` is passed as ``past_key_values`` to transformers versions and models that call it so.
    """
    kind: Any = type(plain_model(model))
    names = _names(kind)
    if "cache" in kwargs and "cache" not in names:
        kwargs["past_key_values"] = kwargs.pop("cache")
    if "position_ids" in kwargs and learned_prompt(model) is not None:
        del kwargs["position_ids"]  # those of the virtual tokens come first; the model counts from there
    for optional in ("position_ids", "logits_to_keep", "use_cache"):
        if optional not in names:
            kwargs.pop(optional, None)
    return model(**kwargs)


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions [B, T] that count only real tokens, whichever side the padding is on."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


_LOCK = threading.Lock()
_HELD: dict[tuple[int, str], tuple[int, Callable[[], None]]] = {}
"""(object, what) -> how many threads hold a temporary state of it, and what puts the former state back."""


@contextmanager
def _held(thing: Any, what: str, enter: Callable[[], Callable[[], None]]) -> Iterator[None]:
    """Within: what `enter` set; the last thread to leave undoes it. So one thread's end is not another's surprise."""
    key = (id(thing), what)
    with _LOCK:
        count, undo = _HELD.get(key) or (0, enter())
        _HELD[key] = (count + 1, undo)
    try:
        yield
    finally:
        with _LOCK:
            count, undo = _HELD.pop(key)
            if count > 1:
                _HELD[key] = (count - 1, undo)
            else:
                undo()


def attention_as(model: Any, name: str) -> Any:
    """A context within which the model's attention is the one of that name."""
    config = model.config

    def enter() -> Callable[[], None]:
        before, config._attn_implementation = config._attn_implementation, name
        return lambda: setattr(config, "_attn_implementation", before)

    return _held(config, "attention", enter)


def evaluating(model: nn.Module) -> Any:
    """A context within which the model is in evaluation mode."""

    def enter() -> Callable[[], None]:
        training = model.training
        if training:
            model.eval()

        def undo() -> None:
            if training:
                model.train()

        return undo

    return _held(model, "mode", enter)


def inference_attention(model: Any) -> Any:
    """A context within which attention is sdpa if the model runs eager: quicker without gradients."""
    before = model.config._attn_implementation
    swap = before in ("eager", "sdpa") and getattr(model, "_supports_sdpa", False)
    return attention_as(model, "sdpa" if swap else before)


class _Wanted(threading.local):
    places: Tensor | None = None


_WANTED = _Wanted()


def _narrow(module: nn.Module, args: Any, out: Any) -> Any:
    """A trunk's forward hook: of each row's states only the one at its wanted place goes on to the head."""
    states, places = getattr(out, "last_hidden_state", None), _WANTED.places
    if states is None or places is None or states.ndim != 3:
        return None
    if places.ndim == 2 and places.dtype == torch.int64:  # index_select: indexing's backward is slow on a CPU
        rows, columns = places
        out.last_hidden_state = states.flatten(0, 1).index_select(0, rows * states.shape[1] + columns)[None]
    elif states.shape[0] != len(places):
        return None
    elif places.dtype == torch.bool:
        out.last_hidden_state = states[places][None]
    else:
        out.last_hidden_state = states[torch.arange(len(places), device=states.device), places][:, None]
    return out


@contextmanager
def predicting_at(model: Any, places_B: Tensor) -> Iterator[None]:
    """Within: forwards in this thread give logits [B, 1, V] at one place of each row, and the head computes no others.

    Given bool [B, T] instead: logits [1, N, V] at the N places that are true; given int64 [2, N]: at N (row, place),
    which may come more than once.

    Only where a model's head reads nothing but its trunk's last states, each by itself; the caller must have tried.
    """
    trunk = plain_model(model).base_model
    outer, _WANTED.places = _WANTED.places, places_B
    try:
        with _held(trunk, "places", lambda: trunk.register_forward_hook(_narrow).remove):
            yield
    finally:
        _WANTED.places = outer
