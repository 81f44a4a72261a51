"""k-shot accuracy on target tasks, before and after a model was trained: the same demonstrations and queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from tutelage.core.errors import ConfigError
from tutelage.core.stats import mean_interval, seeds_interval
from tutelage.icl.evaluate import Bench, Setting, evaluate, pool_apart
from tutelage.icl.examples import subsample
from tutelage.icl.prompts import Format
from tutelage.icl.tasks import Task

Hits = Mapping[tuple[str, int], np.ndarray]
"""(task, shots) -> whether each query was right, [seeds, queries] of 0 and 1."""


@dataclass(frozen=True)
class Target:
    """A task that is measured, and the group of tasks to which it belongs."""

    name: str
    group: str
    bench: Bench


def target(engine: Any, task: Task, group: str, form: Format | None, limit: int, shots: int) -> Target:
    """At most `limit` test examples of a task as queries, in `form` or the task's own; ConfigError for a task whose
    answers are generated."""
    if task.open:
        raise ConfigError(f"task {task.name}: its answers are generated; a target needs labels or choices to score")
    queries = subsample(task.examples("test"), limit)
    shown = form or task.format
    return Target(task.name, group, Bench(engine, shown, shown, pool_apart(task, queries, 0, shots), queries))


def hits(targets: Sequence[Target], shots: Sequence[int], score: str, seeds: Sequence[int]) -> Hits:
    """What the engine's model answers to every query now. Options are compared by their mean log-prob per token, which
    is what training lowers."""
    out = {}
    settings = [Setting(shots=k, score=score, norm="token") for k in shots]
    for one in targets:
        found = [evaluate(one.bench, settings, seed) for seed in seeds]
        for number, k in enumerate(shots):
            rows = [np.equal(results[number].predictions, results[number].gold) for results in found]
            out[one.name, k] = np.array(rows, dtype=float)
    return out


def mean_accuracy(found: Hits) -> float:
    """The mean over tasks."""
    return float(np.mean([table.mean() for table in found.values()]))


def compare(targets: Sequence[Target], before: Hits, after: Hits) -> list[dict[str, Any]]:
    """A row for each group and number of shots: "before", "after" and "gain", each with "_low" and "_high".

    95% intervals by Student's t over tasks (what another draw of tasks, demonstrations and queries would move), the
    gain's over the differences task by task; of a group of one task over its queries.
    """
    rows = []
    for group in dict.fromkeys(one.group for one in targets):
        names = [one.name for one in targets if one.group == group]
        for k in dict.fromkeys(shots for _, shots in before):
            left, right = (_units([found[name, k] for name in names]) for found in (before, after))
            row: dict[str, Any] = {"group": group, "tasks": len(names), "shots": k}
            for key, values in (("before", left), ("after", right), ("gain", right - left)):
                row |= dict(zip((key, f"{key}_low", f"{key}_high"), _interval(values, key == "gain")))
            rows.append(row)
    return rows


def each_task(targets: Sequence[Target], before: Hits, after: Hits, shots: int) -> list[dict[str, Any]]:
    """Accuracy of every task with the intervals of `tutelage icl`."""
    rows = []
    for one in targets:
        row: dict[str, Any] = {"task": one.name, "shots": shots}
        for key, found in (("before", before), ("after", after)):
            values = found[one.name, shots]
            row["n"] = values.shape[1]
            bounds = seeds_interval([float(x) for x in values.mean(1)], values.shape[1])
            row |= dict(zip((key, f"{key}_low", f"{key}_high"), bounds))
        rows.append(row)
    return rows


def _units(tables: Sequence[np.ndarray]) -> np.ndarray:
    return tables[0].mean(0) if len(tables) == 1 else np.array([table.mean() for table in tables])


def _interval(values: np.ndarray, signed: bool) -> tuple[float, float, float]:
    n, least = len(values), -1.0 if signed else 0.0
    if n == 1:
        return float(values[0]), least, 1.0
    mean, low, high = mean_interval(values.tolist(), float(student.ppf(0.975, n - 1)))
    return mean, max(low, least), min(high, 1.0)
