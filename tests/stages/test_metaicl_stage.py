"""The stage metaicl end to end, very small: every objective, what is told, what is refused, and that it learns."""

import json
import re
import shlex
from pathlib import Path

import pytest

from tutelage.core.config import parse_words
from tutelage.core.errors import ConfigError, DataError
from tutelage.engine import load
from tutelage.pipeline.stages import config_class, launch, read_summary
from tutelage.report import write_report
from tutelage.report.sheets import folder_sheets

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/metaicl.md").read_text(encoding="utf-8")
SMALL = {"precision": "fp32", "steps": 2, "batch_size": 4, "world_tasks": 8, "target_tasks": 2, "limit": 4, "shots": 2,
         "measured": [0], "documents": 60, "eval_every": 0}  # fmt: skip


def write_task(folder, name, rows):
    for part in ("train", "test"):
        lines = [json.dumps({"text": f"{part} {text}", "label": label}) + "\n" for text, label in rows]
        (folder / f"{name}-{part}.jsonl").write_text("".join(lines))
    description = f'train = "{name}-train.jsonl"\ntest = "{name}-test.jsonl"\nlabels = {{ a = "red", b = "blue" }}\n'
    (folder / f"{name}.toml").write_text(description)
    return str(folder / f"{name}.toml")


@pytest.mark.parametrize("more", [{"channel": True, "seeds": 2}, {"objective": "selfsupervised"},
                                  {"objective": "classification", "format": "minimal"}])  # fmt: skip
def test_accuracy_is_told_before_and_after(chain, tmp_path, more):
    out, _ = launch("metaicl", {**SMALL, **more, "model": str(chain / "pretrain"), "out": str(tmp_path / "m")})
    summary = read_summary(out)
    world = "schoolroom:demo:heldout"
    groups = {world: 2, f"{world}_labels": 2, f"{world}_families": 2, "all targets": 6}
    assert [(row["group"], row["shots"], row["tasks"]) for row in summary["groups"]] == [
        (group, shots, tasks) for group, tasks in groups.items() for shots in (0, 2)
    ]
    last = summary["groups"][-1]
    for key, name in (("before", "accuracy_before"), ("after", "accuracy"), ("gain", "gain")):
        assert summary[name] == last[key] and last[f"{key}_low"] <= last[key] <= last[f"{key}_high"]
    assert last["gain"] == pytest.approx(last["after"] - last["before"])
    assert len(summary["tasks"]) == 6 and (out / "figures/accuracy.png").stat().st_size > 5000
    (sheet,) = folder_sheets(out)
    assert len(sheet.rows) == 8 and sheet.columns[-1] == "gain"
    page = write_report(out).read_text()
    assert "accuracy in context, before and after" in page and "In-context learning" in page
    assert load(str(out)).model.num_parameters() == load(str(chain / "pretrain")).model.num_parameters()


def test_it_learns_what_the_labels_of_its_tasks_are(chain, tmp_path):
    """Words that only the training tasks tell: on other texts of a task that it saw the like of, all are right."""
    rows = [(f"number {i} is {'big' if i % 2 else 'small'}", "ab"[i % 2]) for i in range(24)]
    tasks = [write_task(tmp_path, name, rows) for name in ("one", "two")]
    values = {**SMALL, "model": str(chain / "pretrain"), "steps": 40, "batch_size": 8, "shots": 1, "measured": [1],
              "limit": 24, "tasks": tasks[0], "targets": tasks[1], "out": str(tmp_path / "m")}  # fmt: skip
    summary = read_summary(launch("metaicl", values)[0])
    assert summary["accuracy"] > summary["accuracy_before"] and summary["accuracy"] >= 0.9
    assert summary["gain_low"] > 0


@pytest.mark.parametrize(("more", "error", "message"), [
    ({"targets": "schoolroom:demo:train:3"}, ConfigError, "train:3 is a training task and a target"),
    ({"channel": True, "objective": "next_sentence"}, ConfigError, "channel=true with objective=next_sentence"),
    ({"objective": "masked_word", "format": "own"}, ConfigError, "format=own with objective=masked_word"),
    ({"measured": [-1]}, ConfigError, "shots are 0 or more"),
    ({"objective": "nsp"}, ConfigError, "objective"),
    ({"shots": 60}, DataError, "8 training examples, and shots=60 and a query need 61"),
    ({"targets": "sst2", "data": "/nowhere"}, ConfigError, "is not under /nowhere"),
    ({"tasks": "schoolroom:demo:tests:1"}, ConfigError, "families='demo:tests:1'"),
])  # fmt: skip
def test_what_cannot_be_is_refused(chain, tmp_path, more, error, message):
    with pytest.raises(error, match=message):
        launch("metaicl", {**SMALL, **more, "model": str(chain / "pretrain"), "out": str(tmp_path / "m")})


def test_text_without_sentences_is_refused(chain, tmp_path):
    (tmp_path / "text.jsonl").write_text('{"text": "one line"}\n' * 5)
    values = {**SMALL, "objective": "selfsupervised", "text": str(tmp_path / "text.jsonl")}
    with pytest.raises(DataError, match="0 documents of 3 sentences or more"):
        launch("metaicl", {**values, "model": str(chain / "pretrain"), "out": str(tmp_path / "m")})


def test_a_target_of_the_world_is_a_task_of_the_toolkit(chain, tmp_path):
    values = {"task": "schoolroom:demo:heldout:0", "model": str(chain / "pretrain"), "limit": 4, "shots": [0, 2]}
    cells = read_summary(launch("icl", {**values, "out": str(tmp_path / "icl")})[0])["cells"]
    assert [cell["shots"] for cell in cells] == [0, 2]


@pytest.mark.parametrize("line", re.findall(r"^tutelage (metaicl|run) (.+)", PAGE, re.M))
def test_the_commands_of_the_page_know_their_keys(line):
    verb, words = line[0], shlex.split(line[1])
    if verb == "run":
        assert (ROOT / words[0]).is_file()
    else:
        config_class(verb).model_validate(parse_words(words))
