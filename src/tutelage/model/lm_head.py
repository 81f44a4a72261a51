"""A causal LM in two halves: the trunk's last states, and the head that makes logits of some of them.

The head is the model's own code (Gemma's soft-cap, Cohere's and Granite's scale, biases, adapters on the head): its
forward runs with the trunk replaced by the states given. Whether that gives the model's own logits is tried once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tutelage.model.forward import call, evaluating, plain_model, vocabulary

log = logging.getLogger("tutelage")
_PROBED = 6
"""Tokens of the probe."""


class LMHead:
    """States [N, D] -> logits [N, V] of a live model. `parameters`: what of it is trained, `vocabulary`: V."""

    def __init__(self, model: Any, out: Any) -> None:
        """`out`: what the model's trunk returns; its last states are replaced."""
        self._plain, self._out = plain_model(model), out
        self.vocabulary = vocabulary(model)
        self.model, self.trained = model, set[str]()

    @property
    def parameters(self) -> list[Tensor]:
        """Found by name at every call: under FSDP they are other tensors within a forward than outside."""
        return [p for name, p in self.model.named_parameters() if name in self.trained]

    def __call__(self, states_ND: Tensor) -> Tensor:
        trunk, self._out.last_hidden_state = self._plain.base_model, states_ND[None]
        own = trunk.__dict__.get("forward")
        trunk.__dict__["forward"] = lambda *args, **kwargs: self._out
        try:
            token = torch.zeros(1, 1, dtype=torch.long, device=states_ND.device)
            return self._plain(input_ids=token, use_cache=False).logits[0]
        finally:
            self._out.last_hidden_state = None
            if own is None:
                del trunk.__dict__["forward"]
            else:
                trunk.__dict__["forward"] = own


@contextmanager
def _kept(trunk: Any, narrow: bool) -> Iterator[list[Any]]:
    """Within: the trunk's results are collected; with `narrow` a single state goes on to the head."""
    found: list[Any] = []

    def keep(module: Any, args: Any, out: Any) -> None:
        found.append((out, out.last_hidden_state))
        if narrow:
            out.last_hidden_state = out.last_hidden_state[:1, -1:]

    handle = trunk.register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def states(model: Any, **inputs: Any) -> Tensor:
    """The trunk's last states [B, T, D] of the model's own forward; virtual tokens of a learned prompt are left out."""
    with _kept(plain_model(model).base_model, narrow=True) as found:
        call(model, **inputs, use_cache=False)
    return found[0][1][:, -inputs["input_ids"].shape[1] :]


def lm_head(model: Any) -> LMHead | None:
    """The model's head, or None (the reason is logged) where its logits are not a function of each state by itself."""
    try:
        with torch.enable_grad(), evaluating(model):
            return _probe(model)
    except Exception as problem:  # whatever a family's own code raises means the same: it does not work there
        reason = f"{type(problem).__name__}: {problem}"
    log.warning("%s makes all its logits at once: %s", type(plain_model(model)).__name__, reason)
    return None


def _probe(model: Any) -> LMHead:
    plain = plain_model(model)
    if plain.base_model is plain:
        raise ValueError("it has no trunk apart from its head")
    ids = torch.arange(_PROBED, device=next(model.parameters()).device)[None] % vocabulary(model)
    with _kept(plain.base_model, narrow=False) as kept:
        wanted = call(model, input_ids=ids, use_cache=False).logits[0]
    if len(kept) != 1:
        raise ValueError("its head does not ask the whole trunk")
    ((out, last),) = kept
    head = LMHead(model, out)
    some = [-1, -4, -2]  # in another order: a head that mixes places would show it
    made = head(last[0, some].detach())
    gap = (made - wanted[some]).detach().abs().max() / (1 + wanted.detach().abs().max())
    if not gap <= (1e-4 if made.dtype == torch.float32 else 5e-2):
        raise ValueError(f"its logits differ by {float(gap):.1e}")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if made.requires_grad:
        grads = torch.autograd.grad(made.float().sum(), list(trained.values()), allow_unused=True)
        head.trained = {name for name, g in zip(trained, grads) if g is not None}
    return head
