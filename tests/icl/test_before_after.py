"""Accuracy before and after: means and intervals over tasks, the gain's over differences."""

import numpy as np
import pytest
from scipy import stats

from tutelage.core.errors import ConfigError
from tutelage.icl.before_after import Target, compare, each_task, hits, mean_accuracy, target
from tutelage.icl.evaluate import Bench, Setting, evaluate
from tutelage.icl.prompts import MINIMAL
from tutelage.icl.tasks import load_task

NAMES = ("schoolroom:demo:heldout:0", "schoolroom:demo:heldout:1", "schoolroom:demo:heldout:2")


def bench(rights):
    return Bench(None, MINIMAL, MINIMAL, (), [None] * rights)


def table(*rows):
    return np.array(rows, dtype=float)


def test_a_group_of_tasks_has_students_interval_over_its_tasks():
    targets = [Target(name, "worlds", bench(4)) for name in NAMES]
    before = {(n, 2): table([1, 0, 0, 0]) if i else table([1, 1, 0, 0]) for i, n in enumerate(NAMES)}
    after = {(n, 2): table([1, 1, 1, last]) for n, last in zip(NAMES, (1, 0, 1))}
    (row,) = compare(targets, before, after)
    left, right = np.array([0.5, 0.25, 0.25]), np.array([1, 0.75, 1])
    for key, values in (("before", left), ("after", right), ("gain", right - left)):
        low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
        assert row[key] == pytest.approx(values.mean())
        assert row[f"{key}_low"] == pytest.approx(max(low, -1 if key == "gain" else 0))
        assert row[f"{key}_high"] == pytest.approx(min(high, 1))
    assert row["tasks"] == 3 and row["shots"] == 2 and mean_accuracy(after) == pytest.approx(right.mean())
    rows = each_task(targets, before, after, 2)
    assert [r["task"] for r in rows] == list(NAMES) and rows[1]["before"] == 0.25 and rows[1]["n"] == 4
    assert all(r["after_low"] < r["after"] <= r["after_high"] for r in rows)


def test_one_task_alone_has_an_interval_over_its_queries():
    targets = [Target("one", "targets", bench(6))]
    before, after = {("one", 0): table([0, 0, 1, 1, 0, 1])}, {("one", 0): table([1, 0, 1, 1, 1, 1])}
    (row,) = compare(targets, before, after)
    differences = after["one", 0][0] - before["one", 0][0]
    assert row["gain_low"] == pytest.approx(stats.t.interval(0.95, 5, 1 / 3, stats.sem(differences))[0])


def test_hits_are_the_toolkits_answers(engine):
    task = load_task(NAMES[0])
    one = target(engine, task, "g", None, 8, 2)
    found = hits([one], [0, 2], "channel", [3])
    results = evaluate(one.bench, [Setting(0, score="channel", norm="token"), Setting(2, score="channel")], 3)
    for k, result in zip((0, 2), results):  # of one input under every label: per token or summed is the same
        assert found[NAMES[0], k].mean() == pytest.approx(result.metrics["accuracy"])
    assert one.bench.manual == task.format and len(one.bench.queries) == 8
    shown = {e.text for e in one.bench.pool}
    assert not shown & {q.text for q in one.bench.queries}


def test_a_target_whose_answers_are_generated_is_refused(engine, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": "b"}\n' * 4)
    (tmp_path / "open.toml").write_text('train = "rows.jsonl"\ntest = "rows.jsonl"\n')
    with pytest.raises(ConfigError, match="its answers are generated"):
        target(engine, load_task(str(tmp_path / "open.toml")), "g", None, 2, 1)
