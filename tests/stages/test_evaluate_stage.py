"""A reward model measured again without training: the same report, on its own held-out part or on other rankings."""

import json

import pytest
from rich.console import Console

from tutelage.core.errors import ConfigError
from tutelage.model.hub import create_model, save_model
from tutelage.pipeline.stages import launch, read_summary
from tutelage.report import write_report
from tutelage.report.reward import sheets
from tutelage.report.sheets import console_tables
from tutelage.text.tokenizer import train_tokenizer

WORDS = "the cat sat on a mat and saw one dog run far away".split()
ORDERS = ([[0], [1], [2]], [[0], [1, 2]], [[2], [0], [1]])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(folder, base model, rankings file of two people a prompt, reward run)."""
    folder = tmp_path_factory.mktemp("evaluate")
    tokenizer = train_tokenizer([" ".join(WORDS)] * 9, 320)
    save_model(create_model("laptop-0.3m", tokenizer, 128), tokenizer, folder / "base")
    rows = [
        {"prompt": f"tell {i} {WORDS[i % 13]}", "responses": [" ".join(WORDS[k : k + 2 + i % 4]) for k in range(3)],
         "ranking": ORDERS[(i + p) % 3], "annotator": f"person {(i + p) % 3}"}
        for i in range(30)
        for p in range(2)
    ]  # fmt: skip
    (folder / "rankings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"model": str(folder / "base"), "data": str(folder / "rankings.jsonl"), "steps": 3, "batch_size": 4,
              "max_length": 40, "out": str(folder / "reward")}  # fmt: skip
    launch("reward", values)
    return folder


def evaluate(folder, name, **values):
    given = {"model": str(folder / "reward"), "data": str(folder / "rankings.jsonl"), "out": str(folder / name)}
    path, _ = launch("evaluate", {**given, **values})
    return read_summary(path), json.loads((path / "reward_report.json").read_text())


def test_on_the_training_file_the_held_out_part_is_measured_and_gives_the_same_report(runs):
    summary, report = evaluate(runs, "again")
    trained = json.loads((runs / "reward" / "reward_report.json").read_text())
    assert summary["part"] == "heldout" and summary["prompts"] == read_summary(runs / "reward")["held_prompts"]
    assert report["people"]["between"] == trained["people"]["between"]
    for key in ("accuracy", "kendall_tau", "model_agreement", "people_agreement", "length_only_accuracy"):
        assert report["summary"][key] == pytest.approx(trained["summary"][key]), key
    margins = [[row["margin"] for row in found["reliability"]] for found in (report, trained)]
    assert margins[0] == pytest.approx(margins[1], abs=1e-4)  # the shift of the saved model moves all scores alike
    every, _ = evaluate(runs, "all", part="all")
    assert every["part"] == "all" and every["prompts"] == 30
    few, _ = evaluate(runs, "few", part="all", rows=7)
    assert few["prompts"] <= 7


def test_other_rankings_are_measured_whole(runs):
    rows = [{"prompt": f"new {i}", "chosen": "the cat sat", "rejected": "far away"} for i in range(5)]
    (runs / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary, report = evaluate(runs, "pairs", data=str(runs / "pairs.jsonl"))
    assert summary["part"] == "all" and summary["pairs"] == 5 and report["people"] is None


def test_a_plain_folder_needs_the_model_whose_log_probs_it_reads(runs):
    folder = str(runs / "reward" / "model")
    with pytest.raises(ConfigError, match="sft="):
        evaluate(runs, "plain", model=folder, part="heldout")
    given, _ = evaluate(runs, "named", model=folder, part="heldout", sft=str(runs / "base"), max_length=40)
    assert given["accuracy"] == pytest.approx(read_summary(runs / "reward")["accuracy"])


def test_the_report_is_shown_in_the_terminal_and_on_the_page(runs):
    assert (runs / "reward" / "figures" / "reward.png").stat().st_size > 5000
    console = Console(width=140, record=True, file=open("/dev/null", "w"))
    for table in console_tables(runs / "reward"):
        console.print(table)
    text = console.export_text()
    for words in ("agreement: one person with another", "person 0", "Krippendorff's alpha, pairs", "with the model"):
        assert words in text
    page = write_report(runs / "reward").read_text()
    assert "agreement: one person with another" in page and "Reward model on held-out rankings" in page
    assert console_tables(runs / "base") == [] and sheets({}) == []
