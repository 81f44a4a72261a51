"""The templates of T0 as tasks, and a mixture of them for a real model."""

import json

import pytest

from tutelage.icl.builtin import builtin_task
from tutelage.icl.fitting import Fitting
from tutelage.icl.mixture import Forms, Mixture, data_set
from tutelage.icl.ready import CLUSTERS, ready_tasks
from tutelage.icl.wordings import WORDINGS
from tutelage.pipeline.stages import launch, read_summary

pytestmark = pytest.mark.real


def test_more_than_a_hundred_templates_become_rows_that_fit_a_real_model(real_data, tmp_path):
    folder = real_data / "instr/t0_p3_templates"
    found = ready_tasks(folder)
    assert len(found.tasks) > 100 and {task.cluster for task in found.tasks} <= set(CLUSTERS)
    assert found.left_out["trec_trec1"] == "no answer in any row"  # upstream lost its answers
    out, _ = launch("mixture", {
        "ready": str(folder), "without": ["paraphrase"], "tokenizer": str(real_data / "weights/stories260K/hf"),
        "max_length": 256, "rows": 400, "out": str(tmp_path / "mixture"),
    })  # fmt: skip
    made = read_summary(out)
    assert made["rows"] == 400 and "paraphrase" not in made["clusters"] and made["cut"] > 0
    assert set(made["forms"]) == {"zero_shot", "few_shot"} and made["answers_left_out"] > 0
    rows = [json.loads(line) for line in (out / "sft.jsonl").open(encoding="utf-8")]
    assert not any("<|endoftext|>" in row["completion"] for row in rows)


@pytest.mark.parametrize("name", [name for name, (_, templates) in WORDINGS.items() if templates])
def test_every_wording_of_a_built_in_task_can_be_told_both_ways(real_data, name):
    made = data_set(builtin_task(name, str(real_data)), 20, 0)
    assert made.cluster == WORDINGS[name][0] and len(made.wordings) == 1 + len(WORDINGS[name][1])
    for turned in (0.0, 1.0):
        rows = list(Mixture([made], 40, 3000, Forms(0.5, 2, 0.5, turned, 0.0), Fitting(), 0).made())
        assert {row["template"] for row in rows} == {w.name for w in made.wordings}
        assert all(row["prompt"] and row["completion"] and row["turned"] == bool(turned) for row in rows)
