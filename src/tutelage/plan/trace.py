"""Bytes that a model's own code would hold at every moment, found by running it on shapes alone.

torch's fake tensors have sizes and no contents, so a forward and backward pass of a 175B model takes seconds and no
memory. A ledger sees every tensor that comes and goes. What it cannot see: scratch space inside a kernel (oneDNN, MKL),
gaps of the allocator, and the libraries themselves.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tutelage.train import optim

PARTS = ("weights", "casts", "gradients", "optimizer", "kv cache", "logits", "activations")
"""weights: parameters and buffers; casts: their copies in the compute dtype (autocast); logits: whatever has the
vocabulary as its last dimension; activations: the rest, temporaries of the backward pass and of the step among them."""


class _Storage:
    __slots__ = ("bytes", "part")

    def __init__(self, size: int, part: str) -> None:
        self.bytes, self.part = size, part


class Ledger(TorchDispatchMode):
    """Within: every new tensor's storage is booked under a part until it is freed. `vocab`: size of the vocabulary."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.vocab = vocab
        self._live: dict[int, _Storage] = {}
        self._log: list[tuple[_Storage, int]] = []

    def hold(self, tensors: Iterable[Tensor | None], part: str) -> None:
        """Book these tensors under `part`, whatever they were."""
        for tensor in tensors:
            if tensor is not None:
                self._enter(tensor, part).part = part

    def _enter(self, tensor: Tensor, part: str) -> _Storage:
        storage = tensor.untyped_storage()
        key = storage._cdata
        found = self._live.get(key)
        if found is None:
            found = self._live[key] = _Storage(storage.nbytes(), part)
            weakref.finalize(storage, self._leave, key)
            self._log.append((found, 1))
        return found

    def _leave(self, key: int) -> None:
        gone = self._live.pop(key, None)
        if gone is not None:
            self._log.append((gone, -1))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        part = "activations"
        if func is torch.ops.aten._to_copy.default and self._is_weight(args[0]):
            part = "casts"
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                is_logits = tensor.ndim > 1 and tensor.shape[-1] == self.vocab
                self._enter(tensor, "logits" if is_logits and part != "casts" else part)
        return out

    def _is_weight(self, tensor: Tensor) -> bool:
        found = self._live.get(tensor.untyped_storage()._cdata)
        return found is not None and found.part == "weights"

    def begin(self) -> None:
        """Forget the past: the next peak is of what happens from now on (what lives now is part of it)."""
        self._log = [(storage, 1) for storage in self._live.values()]

    def peak(self, scale: Mapping[str, float] | None = None) -> dict[str, float]:
        """Bytes by part at the highest moment since `begin`. `scale`: the share of each part that one rank holds (1
        where not named); the moment is that of the rank, not of the whole."""
        share = {part: (scale or {}).get(part, 1.0) for part in PARTS}
        total = most = 0.0
        where = 0
        for number, (storage, sign) in enumerate(self._log, 1):
            total += sign * storage.bytes * share[storage.part]
            if total > most:
                most, where = total, number
        at: Counter[str] = Counter()
        for storage, sign in self._log[:where]:
            at[storage.part] += sign * storage.bytes
        return {part: at[part] * share[part] for part in PARTS if at[part]}


@contextmanager
def shapes_only() -> Iterator[None]:
    """Within: new tensors have a shape and no contents; the random generators stay as they are."""
    with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True):
        yield


def model_on_shapes(kind: Any, config: Any, attention: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model of the config without weights, `kind` being a transformers Auto class; call within `shapes_only`."""
    model = kind.from_config(config, attn_implementation=attention)
    return model.to(dtype) if dtype != torch.float32 else model


def hold_model(ledger: Ledger, model: nn.Module) -> None:
    """Book a model's parameters and buffers."""
    ledger.hold([*model.parameters(), *model.buffers()], "weights")


@contextmanager
def _each_shape_once() -> Iterator[None]:
    """Within: Muon's iteration is walked through once for every shape of stack. A further stack of it comes to the
    same state and leaves the same, so it adds nothing to the highest moment, and a large model has hundreds."""
    module: Any = optim
    whole = optim.orthogonalise
    seen: set[torch.Size] = set()

    def once(stack: Tensor, *settings: Any) -> Tensor:
        if stack.shape in seen:
            return torch.empty_like(stack)
        seen.add(stack.shape)
        return whole(stack, *settings)

    module.orthogonalise = once
    try:
        yield
    finally:
        module.orthogonalise = whole


def hold_optimizer(ledger: Ledger, optimizers: Any) -> None:
    """Book an optimiser's state (train/optim.py Optimizers), which torch makes at the first step."""
    for optimizer in optimizers.optimizers:
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.empty_like(p)
        with _each_shape_once():
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        states = [x for state in optimizer.state.values() for x in state.values() if isinstance(x, Tensor)]
        ledger.hold(states, "optimizer")


def step(ledger: Ledger, optimizers: Any) -> None:
    """What an optimiser step allocates beside its state (the real one reads values, which shapes lack)."""
    ledger.hold([p.grad for p in optimizers.params], "gradients")
    nn.utils.clip_grad_norm_([p for p in optimizers.params if p.grad is not None], 1.0)
    with _each_shape_once():
        for optimizer in optimizers.optimizers:
            optimizer.step()
    optimizers.zero_grad()
