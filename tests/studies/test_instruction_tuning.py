"""The study of instruction tuning: held-out clusters stay out, sets are nested, cells are kept, table and figure."""

import json

import pytest

from tutelage.core.errors import ConfigError
from tutelage.pipeline.stages import launch, read_summary
from tutelage.report.instruction import curve_panels, study_sheet

SMALL = {
    "model": "preset:laptop-0.3m", "held_out": ["paraphrase"], "templates": [1, 99], "seeds": 2, "limit": 4, "rows": 24,
    "steps": 2, "batch_size": 4, "max_length": 64, "vocab_size": 300, "text_steps": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def p3(tmp_path_factory):
    folder = tmp_path_factory.mktemp("p3")
    for name in ("ag_news_a", "ag_news_b", "xsum_a", "paws_a"):
        rows = [{"prompt": f"{name}: what of {i}, and of the number {i * 7 % 31}?", "completion": "ab"[i % 2]}
                for i in range(40)]  # fmt: skip
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


@pytest.fixture(scope="module")
def study(p3, tmp_path_factory):
    out = tmp_path_factory.mktemp("instruction") / "study"
    return launch("instruction_tuning", {**SMALL, "data": p3, "out": str(out)})[0]


def templates(path):
    return {json.loads(line)["template"] for line in (path / "sft.jsonl").open()}


def test_held_out_clusters_stay_out_and_sets_are_nested(study):
    found = read_summary(study)
    assert found["training_templates"] == 3 and found["held_templates"] == 1
    assert [(c["training_templates"], c["seeds"]) for c in found["cells"]] == [(0, 1), (1, 2), (3, 2)]
    for cell in found["cells"]:
        assert cell["cluster"] == "paraphrase" and cell["accuracy_low"] <= cell["accuracy"] <= cell["accuracy_high"]
        assert cell["rows"] == 4 and cell["chance"] == 0.5 and cell["loss"] > 0
    for seed in (0, 1):
        few, many = (templates(study / f"mixture-{n}-{seed}") for n in (1, 3))
        assert few < many and not any(name.startswith("paws") for name in many)
    assert "paws" not in (study / "text.jsonl").read_text()
    assert (study / "figures" / "study.png").is_file()


def test_the_same_command_keeps_its_finished_cells(study, p3):
    before = read_summary(study)
    marks = {p: p.stat().st_mtime_ns for p in study.glob("*/model/model.safetensors")}
    manifest = json.loads((study / "manifest.json").read_text())
    (study / "manifest.json").write_text(json.dumps({**manifest, "status": "stopped"}))
    launch("instruction_tuning", {**SMALL, "data": p3, "out": str(study)})
    assert read_summary(study) == before and len(marks) == 5
    assert {p: p.stat().st_mtime_ns for p in study.glob("*/model/model.safetensors")} == marks


def test_table_and_curve(study):
    summary = read_summary(study)
    sheet = study_sheet(summary)
    assert sheet and [row[1] for row in sheet.rows] == ["0", "1", "3"] and study_sheet({"cells": []}) is None
    accuracy, loss = curve_panels(summary["cells"])
    assert [label for label, _, _ in accuracy.lines] == ["paraphrase", "paraphrase: majority", "paraphrase: chance"]
    assert loss.lines[0][1] == [0.0, 1.0, 3.0] and len(accuracy.bands) == 3


def test_an_encoder_decoder_from_scratch(p3, tmp_path):
    values = {**SMALL, "model": "preset:laptop-t5-1m", "templates": [3], "seeds": 1}
    path, _ = launch("instruction_tuning", {**values, "data": p3, "out": str(tmp_path / "t5")})
    assert [c["training_templates"] for c in read_summary(path)["cells"]] == [0, 3]


def test_a_cluster_that_is_not_there_is_named(p3, tmp_path):
    with pytest.raises(ConfigError, match="'sentiment' matches no cluster"):
        launch("instruction_tuning", {**SMALL, "data": p3, "held_out": ["sentiment"], "out": str(tmp_path / "x")})
