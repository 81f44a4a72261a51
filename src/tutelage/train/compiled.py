"""A model's repeated layers through torch.compile, forward and backward: elementwise operations fused, one program for
all layers.

On two cores more than half of an update of a small model is elementwise work and Python between matrix products.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The model's repeated layers: the longest list of modules of one class; [] where there is none."""
    lists = [list(m) for m in model.modules() if isinstance(m, nn.ModuleList) and len({type(x) for x in m}) == 1]
    return max(lists, key=len, default=[])


@functools.cache
def program(kind: Any) -> Callable[..., Any]:
    """The compiled forward of a class of layers; it compiles itself at its first calls."""
    return torch.compile(kind.forward, dynamic=True)


@contextmanager
def compiled(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Within: the layers' forwards (and the backwards of what they make) are compiled.

    Gradients are on, wanted or not: without them it would be another program, whose last bits differ. So policy and
    reference, and log-probs before and in the update, are equal where their weights are.
    """
    if not layers:
        yield
        return
    for layer in layers:
        kind: Any = type(layer)
        layer.forward = MethodType(program(kind), layer)
    try:
        with torch.enable_grad():
            yield
    finally:
        for layer in layers:
            del layer.forward


class Compiled:
    """A forward of `model`, (tokens, attention) -> one tensor, with its layers compiled."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.layers = model, layers_of(model)

    def __call__(self, tokens: Tensor, attention: Tensor) -> Tensor:
        with compiled(self.layers):
            out = self.model(tokens, attention)
        return out if torch.is_grad_enabled() else out.detach()
