"""The study at smoke scale: equal FLOPs, every part a run of its own, found again by the same command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tutelage.core.errors import ConfigError
from tutelage.core.stats import seeds_interval, wilson
from tutelage.icl.tasks import load_task
from tutelage.model.count import training_flops
from tutelage.pipeline.stages import launch, read_summary
from tutelage.studies.architectures import summarise
from tutelage.studies.architectures_tasks import FAMILIES, write_tasks


def test_architectures_cost_the_same_and_are_not_run_again(tmp_path: Path) -> None:
    values = {
        "architectures": ["encoder", "encoder-decoder"], "steps": 12, "batch_size": 1, "block_size": 160, "seeds": 1,
        "vocab_size": 300, "documents": 60, "limit": 2, "shots": [0, 1], "demos": ["before", "around"], "demo_sets": 1,
        "methods": ["prompt-tuned", "instruction-tuned"], "prompt_steps": 1, "tune_rows": 4, "tune_steps": 1,
        "tune_batch": 2, "out": str(tmp_path / "study"),
    }  # fmt: skip
    path, _ = launch("architectures", values)
    found = read_summary(path)
    one, other = found["costs"]
    assert abs(one["flops"] / other["flops"] - 1) < 0.1  # a step is a twelfth
    rows = {(r["architecture"], r["method"], r["form"], r["shots"], r["demos"]) for r in found["table"]}
    assert ("encoder", "prompted", "hidden", 1, "around") in rows
    assert ("encoder-decoder", "instruction-tuned", "asked", 0, "before") in rows
    assert len(rows) == len(found["table"]) == 2 * (2 * 2 * 2 + 2)
    assert (path / "figures" / "study.png").is_file() and (path / "accuracy.png").is_file()
    assert launch("architectures", values) == (path, False)


def test_text_without_tasks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no tasks of its own"):
        launch("architectures", {"data": str(tmp_path), "out": str(tmp_path / "study")})


def test_the_world_s_tasks(tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path, 30, 10, 0)
    assert [Path(p).stem for p in tasks["hidden"]] == [f"{name}-hidden" for name in FAMILIES]
    for asked, hidden in zip(tasks["asked"], tasks["hidden"], strict=True):
        told, shown = (load_task(path).examples("test") for path in (asked, hidden))
        assert [e.answer for e in told] == [e.answer for e in shown] and len(told) == 10
        for question, passage in zip(told, shown, strict=True):
            assert question.text.startswith(passage.text + " question: ") and question.answer in question.options
        trained = {e.text for e in load_task(asked).examples("train")}
        assert len(trained) == 30 and not trained & {e.text for e in told}
    assert all("question:" in e.text for path in tasks["instructions"] for e in load_task(path).examples("train"))


def test_means_are_over_tasks_and_intervals_over_seeds_too() -> None:
    head = {"size": "1m", "architecture": "encoder", "method": "prompted", "form": "asked"}
    place = {"shots": 0, "demos": "before"}
    cells = [{**head, **place, "seed": s, "n": 50, "accuracy": a} for s, a in ((0, 0.5), (0, 0.7), (1, 0.8), (1, 0.8))]
    row, = summarise(json.loads(json.dumps(cells)))
    assert row["accuracy"] == pytest.approx(0.7) and row["n"] == 100 and row["seeds"] == 2
    half = 1.96 * (0.02 / 2 + 0.7 * 0.3 / 100) ** 0.5
    assert (row["low"], row["high"]) == pytest.approx((0.7 - half, 0.7 + half))
    assert seeds_interval([0.5], 10) == (0.5, *wilson(5, 10))


def test_flops_of_a_linear_layer() -> None:
    layer, x_BI = torch.nn.Linear(8, 4), torch.randn(3, 8)
    # forward, and the gradient of the weight; the input needs none
    assert training_flops(lambda: layer(x_BI).sum()) == 2 * (2 * 3 * 8 * 4)
