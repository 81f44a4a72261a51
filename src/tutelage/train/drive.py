"""What every long job shares: resume from the newest checkpoint, step, log, save, stop on Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from tutelage.core.rundir import RunDir
from tutelage.train.checkpoint import load_latest, save_checkpoint
from tutelage.train.loop import Interrupted, StopFlag


class Stateful(Protocol):
    """A part of the job that a checkpoint holds."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any) -> Any: ...


class Values:
    """Plain values (JSON) as a part of the checkpoint."""

    def __init__(self, **values: Any) -> None:
        self.values = values

    def state_dict(self) -> dict[str, Any]:
        return self.values

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values = dict(state)


def drive(
    run: RunDir, parts: Mapping[str, Stateful], steps: int, one_step: Callable[[int], dict[str, Any]], save_every: int
) -> None:
    """Call `one_step(1..steps)`, each returning the step's metrics row, from where the run stands.

    All state that moves lives in `parts`. Raises Interrupted after saving on Ctrl-C or SIGTERM.
    """
    folder, start = run.path / "checkpoints", 0
    if found := load_latest(folder):
        start, state = found
        for name, part in parts.items():
            part.load_state_dict(state[name])
    run.truncate_metrics(start)
    with StopFlag() as stop:
        for step in range(start + 1, steps + 1):
            run.log(one_step(step))
            if stop.set or step == steps or (save_every and step % save_every == 0):
                save_checkpoint(folder, step, {name: part.state_dict() for name, part in parts.items()})
                if stop.set and step < steps:
                    run.close()
                    raise Interrupted(f"{run.path}: stopped at step {step} and saved; the same command resumes")
