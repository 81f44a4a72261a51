"""What every long job shares: resume from the newest checkpoint, step, log, save, stop on Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from tutelage.core.distributed import any_rank, broadcast, rank
from tutelage.core.errors import Interrupted, RunError
from tutelage.core.rundir import RunDir
from tutelage.core.runtime import reseed, resolve_precision
from tutelage.core.stop import StopFlag
from tutelage.train.checkpoint import load_latest, save_checkpoint
from tutelage.train.guard import Guard

BEST_BY = "val_loss"
"""What a stage that measures while it trains calls its held-out loss."""
console = Console(stderr=True, highlight=False)


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


def settle_precision(run: RunDir, precision: str) -> str:
    """"fp32" or "bf16" for the whole run: what "auto" gave when it began holds for every resume."""
    found = run.recall("dtype") if precision == "auto" else None
    found = broadcast(found or resolve_precision(precision))  # measured: the ranks need not agree
    run.note(dtype=found)
    return str(found)


def _go_on(run: RunDir, folder: Path, parts: Mapping[str, Stateful]) -> int:
    """Give the parts the state of the newest checkpoint and take the run's rows back to it; returns its step, 0 without
    one. RunError where it lacks a part."""
    start = 0
    if found := load_latest(folder):
        start, state = found
        if missing := [name for name in parts if name not in state]:
            words = f"no {missing[0]!r} in it, another version wrote it; remove {folder} to begin anew"
            raise RunError(f"{folder}/step-{start}: {words}")
        for name, part in parts.items():
            part.load_state_dict(state[name])
        console.print(f"[bold]{run.path.name}[/] goes on after step {start}")
    run.truncate_metrics(start)
    return start


def drive(
    run: RunDir,
    parts: Mapping[str, Stateful],
    steps: int,
    one_step: Callable[[int], dict[str, Any] | None],
    save_every: int,
    enough: Callable[[], bool] = lambda: False,
    unmoved: tuple[type[Exception], ...] = (),
    guard: Guard | None = None,
) -> None:
    """Call `one_step(1..steps)`, each returning the step's metrics row or None, from where the run stands, until
    `enough()`.

    All state that moves lives in `parts`; the global generators are set anew at every step. Raises Interrupted after
    saving on Ctrl-C or SIGTERM. Errors of the kinds `unmoved`, which a step raises only before it has moved anything,
    go on once the state of the step before is saved. What `guard` has left out is reported, and DivergedError raised
    once the state is saved if it says so. The checkpoint whose row has the lowest BEST_BY outlasts the others.
    """
    if guard:
        parts = {**parts, "guard": guard}
    number = rank()  # the others drop out other units than rank 0
    folder, seed = run.path / "checkpoints", int(run.config.get("seed") or 0)
    saved = start = _go_on(run, folder, parts)

    def save(step: int, row: Mapping[str, Any] | None = None) -> None:
        if guard:
            guard.check_weights(run, step)
        run.sync()
        state = {name: part.state_dict() for name, part in parts.items()}
        keep = int(run.config.get("keep_checkpoints") or 2)
        save_checkpoint(folder, step, state, keep, (row or {}).get(BEST_BY))

    with StopFlag() as stop:
        for step in range(start + 1, steps + 1):
            if enough():
                break
            reseed(seed, "step", step, *([number] if number else []))
            try:
                row = one_step(step)
            except unmoved as error:
                if step - 1 > saved:
                    save(step - 1)
                if step > 1:
                    console.print(f"{run.path}: step {step - 1} is saved")
                raise error
            left_out = guard.report(run) if guard else {}
            if row:
                run.log({**row, **left_out})
            stopping = any_rank(stop.set)
            ending = stopping or (guard is not None and guard.stopping) or step == steps or enough()
            if ending or (save_every and step % save_every == 0):
                save(step, row)
                saved = step
            if guard:
                guard.end(run, step)
            if stopping:
                raise Interrupted(f"{run.path}: stopped and saved at step {step} of {steps}; the same command resumes")
    reseed(seed, "after the steps")
