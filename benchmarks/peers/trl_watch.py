"""What the TRL sides of the benchmarks share: the chat template's turn end, and a callback that times every update."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback

TURN_END = "<|end|>"


class Watch(TrainerCallback):
    """Times and logged values of every update."""

    def __init__(self) -> None:
        self.marks: list[float] = []
        self.rows: list[dict[str, float]] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.marks.append(time.perf_counter())

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.marks.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        self.rows.append(dict(logs or {}))
