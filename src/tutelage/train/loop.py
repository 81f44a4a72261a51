"""The one training loop: objective, accumulation, clipping, evaluation, checkpoints, bit-equal resume.

`objective(model, batch) -> (loss_sum, metrics)` returns the SUM over its units with `metrics["count"]` units; gradients
are divided by the step's total count, so accumulation over unequal micro-batches equals one large batch.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from rich.console import Console
from torch import Tensor, nn

from tutelage.core.errors import RunError
from tutelage.core.rundir import RunDir
from tutelage.core.runtime import autocast, resolve_precision
from tutelage.train.checkpoint import load_latest, save_checkpoint
from tutelage.train.optim import Optimizers

Batch = Mapping[str, Any]
Objective = Callable[[nn.Module, Batch], tuple[Tensor, dict[str, Any]]]
console = Console(stderr=True, highlight=False)


class Loader(Protocol):
    """Endless source of batches that knows where it stands."""

    def __next__(self) -> Batch: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Interrupted(RunError):
    """Ctrl-C or SIGTERM: state was saved; the same command resumes."""


class StopFlag:
    """Turns Ctrl-C and SIGTERM into a flag that the loop reads between steps."""

    def __init__(self) -> None:
        self.set = False

    def __enter__(self) -> StopFlag:
        self._old = {}
        try:
            for sig in (signal.SIGINT, signal.SIGTERM):
                self._old[sig] = signal.signal(sig, self._on)
        except ValueError:  # not the main thread: the caller owns the signals
            self._old = {}
        return self

    def _on(self, *_: Any) -> None:
        self.set = True

    def __exit__(self, *_: Any) -> None:
        for sig, handler in self._old.items():
            signal.signal(sig, handler)


def train(
    model: nn.Module,
    objective: Objective,
    loader: Loader,
    optimizers: Optimizers,
    run: RunDir,
    *,
    steps: int,
    accumulate: int = 1,
    precision: str = "auto",
    evaluate: Callable[[], dict[str, Any]] | None = None,
    eval_every: int = 0,
    save_every: int = 0,
    log_every: int = 10,
    stop_when: Callable[[dict], bool] | None = None,
    sample: Callable[[], list[dict[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Train for `steps` optimiser steps, resuming from the newest checkpoint of `run`.

    `evaluate` gives metrics and `sample` rows for samples.jsonl, both every `eval_every` steps and at the end.
    Returns the last metrics. Raises Interrupted after saving on Ctrl-C, and RunError when gradients stay non-finite.
    """
    folder = run.path / "checkpoints"
    start, bad, seconds = 0, 0, 0.0
    last: dict[str, Any] = {}
    precision = resolve_precision(precision)
    if found := load_latest(folder):
        start, state = found
        model.load_state_dict(state["model"])
        optimizers.load_state_dict(state["optimizers"])
        loader.load_state_dict(state["loader"])
        last, seconds = state["last"], state["seconds"]
        precision = state["precision"]  # a resumed run goes on in the precision that it began in
        if last.get("stopped"):
            return last
    run.truncate_metrics(start)
    run.note(dtype=precision)
    model.train()
    began, tokens = time.perf_counter() - seconds, 0

    def save(step: int) -> None:
        save_checkpoint(
            folder,
            step,
            {
                "model": model.state_dict(),
                "optimizers": optimizers.state_dict(),
                "loader": loader.state_dict(),
                "last": last,
                "precision": precision,
                "seconds": time.perf_counter() - began,
            },
        )

    with StopFlag() as stop:
        mark = time.perf_counter()
        for step in range(start + 1, steps + 1):
            metrics, norm, finite = _step(
                model, objective, loader, optimizers, accumulate, precision, (step - 1) / steps
            )
            bad = 0 if finite else bad + 1
            if bad >= 5:
                raise RunError(
                    f"{run.path}: gradients were not finite for 5 steps (step {step}); lower the learning rate"
                )
            tokens += metrics.pop("tokens", 0)
            done = step == steps
            if step % log_every == 0 or done or step == 1:
                now = time.perf_counter()
                row = {
                    "step": step,
                    **metrics,
                    "grad_norm": norm,
                    "tokens_per_second": round(tokens / max(1e-9, now - mark)),
                    "seconds": round(now - began, 2),
                }
                tokens, mark = 0, now
                if done or (eval_every and step % eval_every == 0):
                    row.update(_look(model, run, step, evaluate, sample))
                    mark = time.perf_counter()
                last = row
                run.log(row)
                _show(run.path.name, row, steps)
                if stop_when and stop_when(row):
                    last = {**row, "stopped": True}
                    save(step)
                    break
            if stop.set or (save_every and step % save_every == 0) or done:
                save(step)
                if stop.set and not done:
                    raise Interrupted(f"{run.path}: stopped at step {step} and saved; the same command resumes")
    return last


def _look(
    model: nn.Module,
    run: RunDir,
    step: int,
    evaluate: Callable[[], dict[str, Any]] | None,
    sample: Callable[[], list[dict[str, Any]]] | None,
) -> dict[str, Any]:
    """Evaluate and write samples, the model in evaluation mode meanwhile; returns the metrics."""
    model.eval()
    with torch.inference_mode():
        metrics = evaluate() if evaluate else {}
        if sample:
            run.sample([{"step": step, **row} for row in sample()])
    model.train()
    return metrics


def _step(
    model: nn.Module,
    objective: Objective,
    loader: Loader,
    optimizers: Optimizers,
    accumulate: int,
    precision: str,
    done: float,
) -> tuple[dict[str, Any], float, bool]:
    total, count, sums = 0.0, 0, {}  # type: ignore[var-annotated]
    tokens = 0
    for _ in range(accumulate):
        batch = next(loader)
        with autocast(precision):
            loss, metrics = objective(model, batch)
        loss.backward()
        units = metrics.pop("count")
        tokens += metrics.pop("tokens", units)
        total, count = total + float(loss.detach()), count + units
        for key, value in metrics.items():
            sums[key] = sums.get(key, 0.0) + float(value) * units
    for p in optimizers.params:
        if p.grad is not None:
            p.grad.div_(max(1, count))
    norm, finite = optimizers.step(done)
    out = {"loss": total / max(1, count), **{k: v / max(1, count) for k, v in sums.items()}, "tokens": tokens}
    if not math.isfinite(out["loss"]):
        finite = False
    return out, norm, finite


def _show(name: str, row: dict[str, Any], steps: int) -> None:
    left = row["seconds"] / row["step"] * (steps - row["step"])
    words = [f"{k} {v:.3f}" for k, v in row.items() if isinstance(v, float) and k not in ("seconds", "grad_norm")]
    console.print(
        f"[bold]{name}[/] {row['step']}/{steps}  {'  '.join(words)}  {row['tokens_per_second']} tok/s  ETA {left:.0f}s"
    )
