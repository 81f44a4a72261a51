"""Over-optimisation, watched in every RL run: monitors of the answers, an early stop, what the curves say at the end.

The reward that a run maximises stands for something else. Where that is known (gold), or can be estimated by reward
models that the run never sees (an ensemble, whose mean less its disagreement is the cautious score of Coste et al.
2023), the run can stop when it falls, with the model of its best stretch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from tutelage.core.errors import ConfigError
from tutelage.core.overoptimisation import fit, over_optimised
from tutelage.core.rundir import RunDir
from tutelage.report.read import StageRun, read_stage
from tutelage.train.drive import console
from tutelage.train.early_stop import BEST, EarlyStop, move_best
from tutelage.train.monitors import diagnose, monitor
from tutelage.train.rollouts import Episodes
from tutelage.train.scores import Rewards

ENDS = 5
"""Updates at either end of a run whose means are compared."""


class WatchKeys(BaseModel):
    """The keys of the early stop."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    stop_on: Literal["none", "gold", "held_out"] = "none"
    """Stop when this no longer rises, and keep the model of its best stretch: gold, or the held-out reward models."""
    held_out_rewards: list[str] = []
    """Run directories of at least two reward models that are never optimised against: their mean, less their
    disagreement, is logged as held_out."""
    patience: int = Field(15, ge=1)
    """Updates without a better mean (of five) after which an early stop ends the run."""

    @model_validator(mode="after")
    def _held_out(self) -> WatchKeys:
        if len(self.held_out_rewards) == 1:
            raise ValueError("held_out_rewards has one reward model; disagreement takes at least two")
        if self.stop_on == "held_out" and not self.held_out_rewards:
            raise ValueError('stop_on="held_out" needs held_out_rewards=[runs/reward1,runs/reward2]')
        return self


class Watch:
    """What looks on: a part of the checkpoint, since a resumed run must stop where an uninterrupted one does."""

    def __init__(
        self, config: WatchKeys, run: RunDir, held_out: Rewards | None, save: Callable[[Path], None], has_gold: bool
    ) -> None:
        """save: writes the policy as it is now into a folder. ConfigError for a rule whose signal is not there."""
        if config.stop_on == "gold" and not has_gold:
            raise ConfigError("stop_on=gold, but there is no gold score; name one with gold=judge.py:score")
        self.signal = config.stop_on
        self.rule = EarlyStop(config.patience)
        self.run, self.held_out, self.save = run, held_out, save

    def look(self, episodes: Episodes, ref: Tensor) -> dict[str, float]:
        """Metrics of an update's answers: the monitors, and the held-out reward models' cautious score."""
        found = monitor(episodes.texts)
        if self.held_out is not None:
            scores, metrics = self.held_out(episodes, ref)
            found["held_out"] = float(scores.mean())
            found["held_out_disagreement"] = metrics["disagreement/ensemble"]
        return found

    def note(self, row: dict[str, Any]) -> None:
        """Take an update's row; the model of a new best stretch is kept."""
        if self.signal != "none" and self.rule.update(row[self.signal]):
            self.save(self.run.path / BEST)

    @property
    def stop(self) -> bool:
        """Whether the run has gone on long enough without getting better."""
        return self.signal != "none" and self.rule.stop

    def finish(self, folder: Path) -> dict[str, Any]:
        """Write the model to keep into `folder`; returns what the run's curves say."""
        facts: dict[str, Any] = {}
        if self.signal != "none" and self.rule.best is not None:
            move_best(self.run.path, folder)
            facts = {"stopped_early": self.stop, "kept_update": self.rule.best_step, "kept_mean5": self.rule.best}
            console.print(
                f"[bold]{self.run.path.name}[/] keeps the model of update {self.rule.best_step}, where the mean of "
                f"{self.signal} over five updates was best ({self.rule.best:.3f})"
            )
        else:
            self.save(folder)
        self.run.sync()
        facts |= conclusions(read_stage(self.run.path))
        if words := facts.get("diagnosis"):
            console.print(f"[bold]{self.run.path.name}[/] {words}")
        return facts

    def state_dict(self) -> dict[str, Any]:
        return self.rule.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rule.load_state_dict(state)


def conclusions(stage: StageRun) -> dict[str, Any]:
    """Of a run's metrics: Gao et al.'s law for proxy and gold against sqrt(KL) with its R2, the best stretch of gold
    beside the last, and the diagnosis."""
    out: dict[str, Any] = {}
    kl = dict(zip(*stage.series("kl"), strict=True))
    for key in ("proxy", "gold"):
        steps, values = stage.series(key)
        far = [math.sqrt(max(kl.get(step, math.nan), 0.0)) for step in steps]
        if found := fit("rl", far, values):
            turn = found.turn
            out[f"{key}_fit"] = {**asdict(found), "turn": turn if turn is None or turn < 1e6 else None}
        if key == "gold":
            out |= over_optimised(far, values)
    rows = [{k: float(v) for k, v in row.items() if isinstance(v, int | float)} for row in stage.rows]
    if len(rows) > 2 * ENDS:
        out["diagnosis"] = diagnose(_means(rows[:ENDS]), _means(rows[-ENDS:]))
    return out


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {k: sum(r[k] for r in rows) / len(rows) for k in rows[0] if all(k in r for r in rows)}
