"""The one training loop: objective, accumulation, clipping, evaluation, checkpoints, bit-equal resume.

`objective(model, batch) -> (loss_sum, metrics)` returns the SUM over its units with `metrics["count"]` units; gradients
are divided by the step's total count, so accumulation over unequal micro-batches equals one large batch.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tutelage.core.distributed import all_sum, from_main, world_size
from tutelage.core.rundir import RunDir
from tutelage.core.runtime import autocast
from tutelage.train.checkpoint import Trained
from tutelage.train.drive import Stateful, Values, console, drive, settle_precision
from tutelage.train.guard import Guard
from tutelage.train.optim import Optimizers
from tutelage.train.parallel import Parallel, Sharded, sharded

Batch = Mapping[str, Any]
Objective = Callable[[nn.Module, Batch], tuple[Tensor, dict[str, Any]]]
Compute = Callable[[Batch], tuple[Tensor, dict[str, Any]]]


class Loader(Protocol):
    """Endless source of batches that knows where it stands; the ids of the rows it handed out last, if it knows them,
    are its `handed`."""

    def __next__(self) -> Batch: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


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
    dropout: bool = True,
    beside: Mapping[str, Stateful] | None = None,
    parallel: Parallel = "ddp",
) -> dict[str, Any]:
    """Train for `steps` optimiser steps, resuming from the newest checkpoint of `run`.

    A row of metrics is logged every `log_every` steps; `evaluate` gives more of them and `sample` rows for
    samples.jsonl, both every `eval_every` steps and at the end. `stop_when(row)` ends the training early; `beside` is
    what it remembers, part of the checkpoint. Without `dropout` the model computes the same function in training as in
    evaluation. Under torchrun the ranks share the work (train/parallel.py), and rank 0 evaluates and samples.
    Returns the last metrics. Raises, once saved, Interrupted on Ctrl-C and DivergedError by the guard (train/guard.py).
    """
    state = Values(last={}, seconds=0.0)
    precision = settle_precision(run, precision)
    pace = _Pace()
    compute: Compute = functools.partial(objective, model)
    if shards := sharded(model, objective, parallel):
        compute, optimizers = shards.root, shards.optimizers(optimizers)
        shards.model.train(dropout)
    guard = Guard.of(run, optimizers.params)

    def one(step: int) -> dict[str, Any] | None:
        values, began, row = state.values, time.perf_counter(), None
        guard.begin(step)
        metrics, norm = _step(compute, loader, optimizers, accumulate, precision, (step - 1) / steps, guard)
        pace.add(metrics.pop("tokens", 0), time.perf_counter() - began)
        due = step == steps or bool(eval_every and step % eval_every == 0)
        if due or step == 1 or step % log_every == 0:
            row = {"step": step, **metrics, "grad_norm": norm, "tokens_per_second": pace.take()}
            row["seconds"] = round(values["seconds"] + time.perf_counter() - began, 2)
            if due:
                _renew(shards)
                row.update(from_main(lambda: _look(model, run, step, evaluate, sample, dropout)))
            values["last"] = {**row, "stopped": True} if stop_when and stop_when(row) else row
            _show(run.path.name, row, steps)
        values["seconds"] += time.perf_counter() - began
        return row

    model.train(dropout)
    moved: Stateful = shards or (model if all(p.requires_grad for p in model.parameters()) else Trained(model))
    parts = {"model": moved, "optimizers": optimizers, "loader": loader, "state": state, **(beside or {})}
    drive(run, parts, steps, one, save_every, lambda: state.values["last"].get("stopped", False), guard=guard)
    _renew(shards)
    return state.values["last"]


class _Pace:
    """Tokens trained on and seconds spent since the last row."""

    def __init__(self) -> None:
        self.tokens, self.seconds = 0, 0.0

    def add(self, tokens: int, seconds: float) -> None:
        self.tokens, self.seconds = self.tokens + tokens, self.seconds + seconds

    def take(self) -> int:
        """Tokens per second; the count begins anew."""
        rate = round(self.tokens / max(1e-9, self.seconds))
        self.tokens, self.seconds = 0, 0.0
        return rate


def _renew(shards: Sharded | None) -> None:
    """Bring the plain model up to its shards; one that is trained itself is."""
    if shards:
        shards.refresh()


def _look(
    model: nn.Module,
    run: RunDir,
    step: int,
    evaluate: Callable[[], dict[str, Any]] | None,
    sample: Callable[[], list[dict[str, Any]]] | None,
    dropout: bool,
) -> dict[str, Any]:
    """Evaluate and write samples, the model in evaluation mode meanwhile; returns the metrics."""
    model.eval()
    with torch.inference_mode():
        metrics = evaluate() if evaluate else {}
        if sample:
            run.sample([{"step": step, **row} for row in sample()])
    model.train(dropout)
    return metrics


def _step(
    compute: Compute,
    loader: Loader,
    optimizers: Optimizers,
    accumulate: int,
    precision: str,
    done: float,
    guard: Guard,
) -> tuple[dict[str, Any], float]:
    """One optimiser step, or none if the guard says so; returns its metrics and the gradients' norm."""
    total, count, sums = 0.0, 0, {}  # type: ignore[var-annotated]
    tokens = 0
    for _ in range(accumulate):
        batch = next(loader)
        guard.rows.append(getattr(loader, "handed", None))
        with autocast(precision):
            loss, metrics = compute(batch)
        loss.backward()
        units = metrics.pop("count")
        tokens += metrics.pop("tokens", units)
        total, count = total + float(loss.detach()), count + units
        for key, value in metrics.items():
            sums[key] = sums.get(key, 0.0) + float(value) * units
    if world_size() > 1:
        total, units, seen, *values = all_sum([total, count, tokens, *sums.values()])
        count, tokens, sums = int(units), int(seen), dict(zip(sums, values))
    for p in optimizers.params:
        if p.grad is not None:
            p.grad.div_(max(1, count))
    out = {"loss": total / max(1, count), **{k: v / max(1, count) for k, v in sums.items()}, "tokens": tokens}
    norm = optimizers.clip()
    if guard.sound({"loss": out["loss"], "grad_norm": norm}):
        optimizers.move(done)
    else:
        optimizers.zero_grad()
    return out, norm


def _show(name: str, row: dict[str, Any], steps: int) -> None:
    left = row["seconds"] / row["step"] * (steps - row["step"])
    words = [f"{k} {v:.3f}" for k, v in row.items() if isinstance(v, float) and k not in ("seconds", "grad_norm")]
    console.print(
        f"[bold]{name}[/] {row['step']}/{steps}  {'  '.join(words)}  {row['tokens_per_second']} tok/s  ETA {left:.0f}s"
    )
