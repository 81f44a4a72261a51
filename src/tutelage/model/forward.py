"""Calling models of many families with the same keyword arguments."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from torch import Tensor, nn


@functools.lru_cache(maxsize=64)
def _names(kind: Any) -> frozenset[str]:
    return frozenset(inspect.signature(kind.forward).parameters)


def plain_model(model: Any) -> Any:
    """The transformers model inside a peft wrapper, else the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def call(model: nn.Module, /, **kwargs: Any) -> Any:
    """``model(**kwargs)`` with optional arguments dropped that its forward does not name (Bloom takes no positions).

    ``cache`` is passed as ``past_key_values`` to transformers versions and models that call it so.
    """
    kind: Any = type(plain_model(model))
    names = _names(kind)
    if "cache" in kwargs and "cache" not in names:
        kwargs["past_key_values"] = kwargs.pop("cache")
    for optional in ("position_ids", "logits_to_keep", "use_cache"):
        if optional not in names:
            kwargs.pop(optional, None)
    return model(**kwargs)


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions [B, T] that count only real tokens, whichever side the padding is on."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
