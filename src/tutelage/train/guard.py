"""What keeps one bad step from spoiling a run: losses and gradients that are not finite, or far above what they were.

A step that is not sound is left out: weights, optimiser state and schedule stay as they are, the data goes on, and the
step is written into skipped.jsonl with its rows. All the guard remembers is part of the checkpoint.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from tutelage.core.config import StageConfig
from tutelage.core.distributed import any_rank
from tutelage.core.errors import DivergedError
from tutelage.core.rundir import RunDir
from tutelage.train.sharded import local

Verdict = Literal["skip", "stop"]
NORMAL = 1.4826
"""Standard deviations in one median absolute deviation of a normal distribution."""
LEAST_SPREAD = 0.1
"""Share of the median that the spread is at least taken for: a history without noise makes no spike of a trifle."""


class GuardConfig(BaseModel):
    """When an optimiser step is not sound, and what happens then."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    on_nan: Verdict = "skip"
    """A loss or gradient that is not finite: leave the step out (skip), or also save and end the run (stop)."""
    spike: float = Field(default=0.0, ge=0)
    """A loss or gradient norm this many robust standard deviations above the median of the last `window` sound steps is
    a spike; 0: none is. 10 or more leaves ordinary noise alone."""
    on_spike: Verdict = "skip"
    """As on_nan, of a spike."""
    window: int = Field(default=64, ge=8)
    """Steps that are looked back on."""
    skips: int = Field(default=5, ge=1)
    """So many steps left out among the last `window` end the run."""


class TrainingKeys(StageConfig):
    """What every stage that trains has besides its method's keys; none is part of what the run is, so they may be
    changed when it is resumed."""

    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints that are kept; the one with the lowest held-out loss is kept besides."""
    guard: GuardConfig = GuardConfig()


class Guard:
    """Judges optimiser steps, and remembers what the sound ones were like."""

    def __init__(self, config: GuardConfig | None = None, params: Iterable[Tensor] = ()) -> None:
        """`params`: what is trained, looked at before every save."""
        self.config, self.params = config or GuardConfig(), list(params)
        self.history: dict[str, list[float]] = {}
        self.recent: list[bool] = []
        """Whether each of the last `window` steps was left out."""
        self.skipped = 0
        self.step, self.rows = 0, []  # type: ignore[var-annotated]
        self.faults: list[dict[str, Any]] = []
        self.stopping = ""
        """Why the run has to end."""

    @classmethod
    def of(cls, run: RunDir, params: Iterable[Tensor]) -> Guard:
        """The guard that the run's configuration asks for; one that began with another is warned of."""
        config = GuardConfig(**run.config.get("guard") or {})
        run.note(guard=config.model_dump())
        return cls(config, params)

    def begin(self, step: int, rows: Sequence[Any] = ()) -> None:
        """The step or update that is judged next, and the ids of its rows as far as they are known yet."""
        self.step, self.rows = step, list(rows)

    def sound(self, values: Mapping[str, float], part: slice | None = None) -> bool:
        """Whether an optimiser step with these losses and gradient norms may move the weights. `part`: which of the
        rows it is made of. Once the run has to end, none may."""
        if self.stopping:
            return False
        words, verdict = self._fault(values)
        self.recent = [*self.recent, bool(words)][-self.config.window :]
        if not words:
            for name, value in values.items():
                self.history[name] = [*self.history.get(name, []), float(value)][-self.config.window :]
            return True
        self.skipped += 1
        rows = self.rows if part is None else self.rows[part]
        self.faults.append({"step": self.step, "why": words, "rows": rows})
        if verdict == "stop":
            self.stopping = words
        elif sum(self.recent) >= self.config.skips:
            self.stopping = f"{words}; {sum(self.recent)} of the last {len(self.recent)} optimiser steps were left out"
        if self.stopping:
            self.recent = []  # who goes on in spite of it has the whole allowance again
        return False

    def _fault(self, values: Mapping[str, float]) -> tuple[str, Verdict]:
        for name, value in values.items():
            if not math.isfinite(value):
                return f"{name} is {value}", self.config.on_nan
        for name, value in values.items():
            limit = self.limit(name)
            if value > limit:
                return f"{name} is {value:.4g}, a spike above {limit:.4g}", self.config.on_spike
        return "", "skip"

    def limit(self, name: str) -> float:
        """Above it a value is a spike: median + spike * max(1.4826 MAD, a tenth of the median), once the window is
        full."""
        known = self.history.get(name, [])
        if not self.config.spike or len(known) < self.config.window:
            return math.inf
        middle = median(known)
        spread = NORMAL * median(abs(value - middle) for value in known)
        return middle + self.config.spike * max(spread, LEAST_SPREAD * abs(middle))

    def report(self, run: RunDir) -> dict[str, int]:
        """Write the steps left out since the last call into skipped.jsonl; returns what the metrics row says of it."""
        if self.faults:
            run.append("skipped.jsonl", self.faults)
            for fault in self.faults:
                print(f"{run.path.name}: step {fault['step']} left out: {fault['why']}", file=sys.stderr)
            self.faults = []
        return {"skipped_in_all": self.skipped} if self.skipped else {}

    def check_weights(self, run: RunDir, step: int) -> None:
        """DivergedError if a trained number is not finite: such a state must not take the place of a sound one."""
        if any_rank(not all(bool(torch.isfinite(local(p)).all()) for p in self.params)):
            raise DivergedError(
                f"{run.path}: weights are not finite after step {step}, which is not saved; {self._advice(run)}"
            )

    def end(self, run: RunDir, step: int) -> None:
        """DivergedError if the run has to end; call once `step` is saved."""
        if self.stopping:
            raise DivergedError(
                f"{run.path}: step {step}: {self.stopping}. Saved at step {step} without it; rows in skipped.jsonl. "
                f"The same command goes on behind it; {self._advice(run)}"
            )

    def _advice(self, run: RunDir) -> str:
        lr = (run.config.get("optimizer") or {}).get("lr")
        return "a lower learning rate" + (f" (optimizer.lr={lr:g})" if lr else "") + " begins anew with restart=true"

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "recent": self.recent, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = {name: list(values) for name, values in state["history"].items()}
        self.recent, self.skipped = list(state["recent"]), int(state["skipped"])
