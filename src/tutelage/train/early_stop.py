"""When to stop optimising a proxy: once what it stands for (or a cautious estimate of it) has stopped rising."""

from __future__ import annotations

from typing import Any


class EarlyStop:
    """Watches a signal's mean over `window` values; asks to stop after `patience` values without a better mean.

    A part of the checkpoint (state_dict), so a resumed run stops where an uninterrupted one does. The mean over a
    window lags by half of it, so the best place is the window's middle.
    """

    def __init__(self, patience: int, window: int = 5) -> None:
        self.patience, self.window = patience, window
        self.values: list[float] = []
        self.best: float | None = None
        self.best_step = 0

    def update(self, value: float) -> bool:
        """Take the next value; whether its window's mean is the best so far (fewer values than a window: no)."""
        self.values.append(float(value))
        if len(self.values) < self.window:
            return False
        mean = sum(self.values[-self.window :]) / self.window
        if self.best is not None and mean <= self.best:
            return False
        self.best, self.best_step = mean, len(self.values)
        return True

    @property
    def stop(self) -> bool:
        """Whether `patience` values have come since the best mean."""
        return self.best is not None and len(self.values) - self.best_step >= self.patience

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values, "best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values, self.best, self.best_step = list(state["values"]), state["best"], state["best_step"]

