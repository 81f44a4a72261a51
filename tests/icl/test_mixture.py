"""Instruction mixtures: shares by formula, forms by count, templates both ways, what does not fit, what is refused."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.core.errors import ConfigError, DataError, RunError
from tutelage.icl.examples import Example
from tutelage.icl.fitting import SPARE, Fitting
from tutelage.icl.mixture import DataSet, Forms, Mixture, Wording, allotted, chosen, data_set, ready_sets, weights
from tutelage.icl.prompts import Format, Prompter
from tutelage.icl.ready import data_set_of, ready_tasks
from tutelage.icl.tasks import load_task
from tutelage.pipeline.stages import launch, read_summary
from tutelage.stages import mixture as stage
from tutelage.text.tokenizer import train_tokenizer

TASK = """
train = "films.jsonl"
labels = { "0" = "bad", "1" = "good" }
cluster = "sentiment"
[format]
input = "Review: {text}"
output = "\\nVerdict: {answer}"
channel_input = "Verdict: {answer}\\nReview: "
[[templates]]
input = "{text}\\nGood or bad?"
channel_input = "Write a review that is {answer}.\\n"
"""
SUMS = """
train = "sums.jsonl"
text = "{question}"
label = "answer"
rationale = "why"
"""


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    """Two described tasks and a folder of ready ones, as P3 has them."""
    lines(tmp_path / "films.jsonl", [{"text": f"film {i}", "label": i % 2} for i in range(30)])
    sums = [{"question": f"{i} and 2?", "answer": i + 2, "why": f"{i} + 2 = {i + 2}."} for i in range(10)]
    lines(tmp_path / "sums.jsonl", sums)
    (tmp_path / "films.toml").write_text(TASK)
    (tmp_path / "sums.toml").write_text(SUMS)
    ready = tmp_path / "p3"
    ready.mkdir()
    for name in ("a", "b"):
        rows = [{"prompt": f"{name} {i}?", "completion": f"{'yes' if i % 3 else 'no'}<|endoftext|>"} for i in range(20)]
        lines(ready / f"paws_{name}.jsonl", rows)
    lines(ready / "trec_x.jsonl", [{"prompt": "what", "completion": "<|endoftext|>"}])
    (ready / "trec_y.jsonl").touch()
    lines(ready / "own.jsonl", [{"prompt": f"say {i}", "completion": str(i)} for i in range(12)]
          + [{"prompt": "say nothing", "completion": ""}])  # fmt: skip
    return tmp_path


def rows_of(path):
    return [json.loads(line) for line in (path / "sft.jsonl").read_text(encoding="utf-8").splitlines()]


@given(st.integers(0, 5000), st.lists(st.integers(1, 10_000), min_size=1, max_size=9), st.integers(1, 4000))
def test_shares_are_examples_proportional_and_sum_to_the_whole(total, sizes, rate):
    shares = weights(sizes, rate)
    assert shares == pytest.approx([min(n, rate) / sum(min(m, rate) for m in sizes) for n in sizes])
    counts = allotted(total, shares)
    assert sum(counts) == total
    assert all(abs(n - total * share) < 1 + 1e-6 for n, share in zip(counts, shares))


def some(size, wordings=2, options=("bad", "good"), rationale=""):
    texts = enumerate(f"t{i}" for i in range(size))
    examples = tuple(Example({"text": t}, t, options, i % 2, options[i % 2], rationale) for i, t in texts)
    forms = [Format(input=f"{n}: {{text}}", channel_input="{answer} <- ") for n in range(wordings)]
    return DataSet("d", "c", tuple(Wording(f"d/{n}", form, examples) for n, form in enumerate(forms)))


def test_forms_come_in_their_shares():
    forms = Forms(few_shot=0.5, shots=3, options=0.4, turned=0.3, chain_of_thought=0.2)
    rows = list(Mixture([some(500, rationale="So.")], 4000, 3000, forms, Fitting(), 0).made())
    share = Counter(row["form"] for row in rows)
    assert share["few_shot_cot"] + share["zero_shot_cot"] == 800  # exactly
    assert share["few_shot"] + share["few_shot_cot"] == pytest.approx(2000, abs=130)  # four standard errors
    plain = [row for row in rows if "cot" not in row["form"]]
    turned, straight = ([r for r in plain if r["turned"] == flag] for flag in (True, False))
    assert len(turned) == pytest.approx(960, abs=110)
    assert sum(r["options"] for r in straight) == pytest.approx(0.4 * len(straight), abs=100)
    assert not any(r["options"] for r in turned)
    assert Counter(r["shots"] for r in rows if r["shots"]).keys() == {1, 2, 3}
    assert Counter(r["template"] for r in rows)["d/0"] == pytest.approx(2000, abs=130)


def test_every_example_comes_once_before_any_comes_again():
    rows = [Mixture([], 0, 1, Forms(0, 1, 0, 0, 0), Fitting(), 7).row(some(40), i, False) for i in range(80)]
    inputs = [row["prompt"].split(": ")[1] for row in rows]
    assert sorted(inputs[:40]) == sorted(inputs[40:]) == sorted({*inputs}) and inputs[:40] != inputs[40:]


def test_templates_both_ways_and_demonstrations_that_are_other_examples():
    made = Mixture([], 0, 1, Forms(1, 2, 1, 0, 0), Fitting(), 0).row(some(9), 3, False)
    *shown, query = made["prompt"].split("\n\n\n")
    assert len(shown) == made["shots"] > 0 and query.endswith("\n- bad\n- good")
    assert query.split("\n")[0] not in " ".join(shown) and made["completion"] in ("bad", "good")
    turned = Mixture([], 0, 1, Forms(0, 2, 1, 1, 0), Fitting(), 0).row(some(9), 3, False)
    assert turned["prompt"] in ("bad <-", "good <-") and turned["completion"].startswith("t") and turned["turned"]
    reasoned = Mixture([], 0, 1, Forms(0, 2, 1, 1, 1), Fitting(), 0).row(some(9, rationale="Well."), 3, True)
    assert "Let's think step by step." in reasoned["prompt"] and not reasoned["turned"]
    assert reasoned["completion"] in ("Well. The answer is bad.", "Well. The answer is good.")


def test_demonstrations_go_first_and_then_the_middle_of_the_input():
    tokenizer = train_tokenizer(["abc"], 262)  # bytes
    long = some(4)
    example = long.wordings[0].examples[0]
    fitting = Fitting(tokenizer, 64 + SPARE)
    prompter = Prompter(Format(input="{text}?"))
    shown = [replace(example, text="x" * 20, fields={})] * 3
    fitted = fitting.fit(prompter, shown, replace(example, text="y" * 20, fields={}))
    assert fitted.shots == 1 and not fitted.cut  # "x..?\nbad\n\n\n" is 28 tokens, "y..?\n" and the answer 24
    text = "begin " + "z" * 90 + " end"
    fitted = fitting.fit(prompter, shown, replace(example, text=text, fields={}))
    assert fitted.cut and fitted.shots == 0 and fitting.tokens(fitted.prompt) == 64 - len("bad")
    assert fitted.prompt.startswith("begin z") and fitted.prompt.endswith("z end?")
    assert fitting.takes("a" * 32) and not fitting.takes("a" * 33)


def test_the_stage_counts_what_it_made(folder):
    words = train_tokenizer(["abc"], 262)
    words.save_pretrained(folder / "tokenizer" / "tokenizer")
    tasks = [str(folder / name) for name in ("films.toml", "sums.toml")]
    values = {"tasks": tasks, "ready": str(folder / "p3"), "rows": 300, "rate": 15,
              "tokenizer": str(folder / "tokenizer"), "max_length": 64}  # fmt: skip
    out, _ = launch("mixture", {**values, "out": str(folder / "mixed")})
    found, rows = read_summary(out), rows_of(out)
    assert found["rows"] == len(rows) == 300 and sum(found["tasks"].values()) == 300
    chains = sum(n for form, n in found["forms"].items() if form.endswith("_cot"))
    # an empty one, and two chains: "8 + 2 = 10. The answer is 10." has 29 bytes, the half of 64 - 8 is 28
    assert found["answers_left_out"] == 3
    assert chains == 15 and found["tasks"]["sums"] == 15 + round(285 * 8 / 50)  # of 15 + 8 + 15 + 12
    assert found["left_out"] == {"trec_x": "no answer in any row", "trec_y": "no rows"}
    assert found["dropped_shots"] > 0 and found["turned"] > 0 and found["options"] > 0
    assert json.loads((out / "manifest.json").read_text())["mixture"] == found
    assert all(len(words(r["prompt"] + r["completion"])["input_ids"]) <= 64 for r in rows)
    assert {r["completion"] for r in rows if r["task"] == "paws"} == {"yes", "no"}
    again, _ = launch("mixture", {**values, "out": str(folder / "again")})
    assert rows_of(again) == rows
    other, _ = launch("mixture", {**values, "seed": 1, "out": str(folder / "other")})
    assert rows_of(other) != rows


def test_killed_while_writing_it_ends_with_the_same_bits(folder, monkeypatch):
    values = {"ready": str(folder / "p3"), "rows": 50}
    whole, _ = launch("mixture", {**values, "out": str(folder / "whole")})

    class Dies(BaseException):
        pass

    real, made = stage.Mixture.row, [0]

    def row(*given):
        made[0] += 1
        if made[0] == 30:
            raise Dies
        return real(*given)

    monkeypatch.setattr(stage, "BATCH", 8)
    monkeypatch.setattr(stage.Mixture, "row", row)
    with pytest.raises(Dies):
        launch("mixture", {**values, "out": str(folder / "broken")})
    assert len(rows_of(folder / "broken")) == 24
    launch("mixture", {**values, "out": str(folder / "broken")})
    assert made[0] == 30 + 26  # what was written is not made again
    assert (folder / "broken" / "sft.jsonl").read_bytes() == (whole / "sft.jsonl").read_bytes()
    assert read_summary(folder / "broken") == read_summary(whole)


def test_ready_files_are_tasks_of_their_data_sets(folder):
    found = ready_tasks(folder / "p3")
    by_name = {task.name: task for task in found.tasks}
    assert by_name["paws_a"].labels == {"no<|endoftext|>": "no", "yes<|endoftext|>": "yes"}
    assert by_name["paws_a"].cluster == "paraphrase" and by_name["own"].open
    assert data_set_of("social_i_qa_Generate_answer") == ("social_i_qa", "multiple_choice")
    assert data_set_of("mine_1") == ("mine_1", "mine_1")
    sets = ready_sets(found.tasks, 30_000, 0)
    assert [(d.name, d.size, len(d.wordings)) for d in sets] == [("own", 13, 1), ("paws", 20, 2)]
    assert [d.name for d in chosen(sets, (), ("paraphrase",))] == ["own"]
    assert [w.name for d in chosen(sets, ("paws_*",), ("paws_a",)) for w in d.wordings] == ["paws_b"]


def test_bad_input_names_what_is_wrong(folder):
    def mix(**values):
        return launch("mixture", {"rows": 8, **values, "out": str(folder / "out"), "restart": True})

    def task(text, name="films"):
        (folder / f"{name}.toml").write_text(text)
        return {"tasks": [str(folder / f"{name}.toml")]}

    with pytest.raises(ConfigError, match="nothing to mix"):
        launch("mixture", {"out": str(folder / "none")})
    with pytest.raises(DataError, match=r"task films: template 1 of 2: .*no field 'title'; the example has text"):
        data_set(load_task(task(TASK.replace('"{text}\\n', '"{title}\\n'))["tasks"][0]), 9, 0)
    (folder / "films.jsonl").write_text("")
    with pytest.raises(DataError, match="films.jsonl: no row of task films"):
        data_set(load_task(task(TASK)["tasks"][0]), 9, 0)
    sets = ready_sets(ready_tasks(folder / "p3").tasks, 9, 0)
    with pytest.raises(ConfigError, match=r"'sentimen' matches no cluster, .*paraphrase, paws"):
        chosen(sets, (), ("sentimen",))
    with pytest.raises(ConfigError, match="leave nothing"):
        chosen(sets, ("paws",), ("paraphrase",))
    with pytest.raises(ConfigError, match="chain_of_thought=0.5: no task has a chain of thought"):
        Mixture([some(4)], 10, 3, Forms(0.5, 5, 0.5, 0.3, 0.5), Fitting(), 0).plan()
    (folder / "p3" / "own.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    with pytest.raises(DataError, match=r"own.jsonl:1: no text 'completion'"):
        ready_tasks(folder / "p3")
    with pytest.raises((DataError, RunError), match="no such"):
        ready_tasks(folder / "nowhere")
