"""Decoding steps through torch.compile: no Python between the layers, elementwise operations fused.

It pays where a step is short (one stream, small models) and costs seconds at the first step. Attention stays one opaque
operator (model/attention.py), so that plans, pools and shared prefixes need not be known to the compiler; the number of
rows is symbolic. Without a compiler the model runs as it is, and one line says so.

"frozen" takes the weights for constants: matrices that share an input become one, packed for kernels that are tuned on
this machine (twice a stream's speed for a 5M model on two cores, after half a minute of tuning; the packed copies
take memory of their own). Weights that change all the same are noticed, and the program is compiled anew without it.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any, Literal

import torch
from torch import Tensor

from tutelage.model.forward import call, plain_model

log = logging.getLogger("tutelage")

Compiled = bool | Literal["frozen"]
LIVE: dict[str, Any] = {"cpp_wrapper": True}
"""The C++ wrapper calls the kernels without Python: a third of a step of a 5M model on two cores."""
FROZEN: dict[str, Any] = {
    **LIVE, "freezing": True, "max_autotune_gemm": True, "max_autotune_gemm_backends": "ATEN,CPP",
    "cpp.enable_concat_linear": True,
}  # fmt: skip


class Decode:
    """Logits [1, N, V] of one forward under the current plan; compiled when asked for and possible."""

    def __init__(self, model: Any, compiled: Compiled) -> None:
        self.model = model
        self._compiled: Any = None
        self._frozen: tuple[Any, ...] | None = None
        self._parameters = list(model.parameters())
        if not compiled:
            return
        if compiled == "frozen" and self._on_cpu:
            self._frozen = self._state()
            if self._frozen is None:
                log.warning('compiled="frozen": changes of inference tensors cannot be noticed; compiled without it')
        self._compile()

    @property
    def _on_cpu(self) -> bool:
        return self._parameters[0].device.type == "cpu"

    def _compile(self) -> None:
        options = (FROZEN if self._frozen else LIVE) if self._on_cpu else None
        self._compiled = torch.compile(plain_model(self.model).forward, dynamic=True, options=options)

    def _state(self) -> tuple[Any, ...] | None:
        """What changes when a weight does: its count of changes in place and its place. None where no one counts."""
        if any(p.is_inference() for p in self._parameters):
            return None
        return tuple((p._version, p.data_ptr()) for p in self._parameters)

    def __call__(self, ids_N: Tensor, positions_N: Tensor) -> Tensor:
        """ids and positions int64 [N]; must run under model.attention.using."""
        given: dict[str, Any] = {"input_ids": ids_N[None], "position_ids": positions_N[None], "use_cache": False}
        if self._frozen is not None and self._state() != self._frozen:
            log.warning('compiled="frozen": the weights have changed; compiling again, not as constants')
            self._frozen = None
            self._compile()
        if self._compiled is not None:
            try:
                with self._freezing():
                    return self._compiled(**given).logits
            except Exception as problem:  # whatever a compiler raises, the model itself still runs
                self._compiled = self._frozen = None
                said = str(problem).strip().splitlines() or [""]
                log.warning("decoding without torch.compile: %s: %s", type(problem).__name__, said[0][:200])
        return call(self.model, **given).logits

    def _freezing(self) -> Any:
        """The tracer asks the global setting, not torch.compile's options, whether weights are constants."""
        if self._frozen is None:
            return contextlib.nullcontext()
        from torch._inductor import config

        return config.patch(freezing=True)
