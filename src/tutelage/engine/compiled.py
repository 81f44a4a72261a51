"""Decoding steps through torch.compile: no Python between the layers, elementwise operations fused.

It pays where a step is short (one stream, small models) and costs seconds at the first step. Attention stays one opaque
operator (model/attention.py), so that plans, pools and shared prefixes need not be known to the compiler; the number of
rows is symbolic. Without a compiler the model runs as it is, and one line says so.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from tutelage.model.forward import call, plain_model

log = logging.getLogger("tutelage")


class Decode:
    """Logits [1, N, V] of one forward under the current plan; compiled when asked for and possible."""

    def __init__(self, model: Any, compiled: bool) -> None:
        self.model = model
        self._compiled: Any = None
        if compiled:
            plain = plain_model(model)
            on_cpu = next(model.parameters()).device.type == "cpu"
            # the C++ wrapper calls the kernels without Python: a third of a step of a 5M model on two cores
            options: dict[str, Any] | None = {"cpp_wrapper": True} if on_cpu else None
            self._compiled = torch.compile(plain.forward, dynamic=True, options=options)

    def __call__(self, ids_N: Tensor, positions_N: Tensor) -> Tensor:
        """ids and positions int64 [N]; must run under model.attention.using."""
        given: dict[str, Any] = {"input_ids": ids_N[None], "position_ids": positions_N[None], "use_cache": False}
        if self._compiled is not None:
            try:
                return self._compiled(**given).logits
            except Exception as problem:  # whatever a compiler raises, the model itself still runs
                self._compiled = None
                said = str(problem).strip().splitlines() or [""]
                log.warning("decoding without torch.compile: %s: %s", type(problem).__name__, said[0][:200])
        return call(self.model, **given).logits
