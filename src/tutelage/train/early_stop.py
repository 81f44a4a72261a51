"""When to stop optimising a proxy: once what it stands for (or a cautious estimate of it) has stopped rising."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tutelage.core.atomic import write_folder
from tutelage.core.distributed import follows

BEST = "best"
"""Folder of the best model so far, in the run directory, while a run with an early stop goes on."""

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



class LowestKept:
    """Early stopping on a metric that should fall: the model of its lowest value is kept, and the training ends after
    `patience` values without a lower one. A `stop_when` of the loop, and a part of its checkpoint."""

    def __init__(self, key: str, patience: int, run: Path, save: Callable[[Path], object]) -> None:
        """`run`: the run directory; `save`: writes the model as it is now into a folder."""
        self.key, self.run, self.save = key, run, save
        self.rule = EarlyStop(patience, window=1)
        self.row: dict[str, Any] = {}

    def __call__(self, row: dict[str, Any]) -> bool:
        if self.key in row and self.rule.update(-row[self.key]):
            self.row = dict(row)
            self.save(self.run / BEST)
        return self.rule.stop

    def finish(self, folder: Path) -> dict[str, Any]:
        """Move the kept model into `folder`; returns the row of metrics that it was kept for."""
        move_best(self.run, folder)
        return self.row

    def state_dict(self) -> dict[str, Any]:
        return {"rule": self.rule.state_dict(), "row": self.row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rule.load_state_dict(state["rule"])
        self.row = dict(state["row"])


def move_best(run: Path, folder: Path) -> None:
    """Put the best model in its place; once it is there (a run was killed right after), nothing is left to do."""
    best = run / BEST
    if best.is_dir() and not follows():
        write_folder(folder, lambda aside: shutil.copytree(best, aside, dirs_exist_ok=True))
        shutil.rmtree(best)
