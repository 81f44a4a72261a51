"""What fine-tuning is measured on: rows that were not trained on, whole tasks if asked."""

import json

import pytest
import torch

from tutelage.core.errors import DataError
from tutelage.core.records import BadRows
from tutelage.model.hub import create_model
from tutelage.stages.sft import SftConfig, answer_loss, divided, encode_rows, unigram_loss
from tutelage.text.chat import as_messages, turn_end_id
from tutelage.text.tokenizer import train_tokenizer


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def tasks(tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    for task in ("add_1", "add_2", "trec_1", "trec_2"):
        rows = [{"prompt": f"{task} question {i}", "completion": f"answer {i % 3}<|endoftext|>"} for i in range(50)]
        _write(folder / f"{task}.jsonl", rows)
    return folder


def _prompts(rows):
    return {row["prompt"] for row in rows}


def test_patterns_hold_whole_tasks_out(tasks):
    (tasks / "trec_3.jsonl").touch()  # a task that has no rows, as in the real templates
    config = SftConfig(model="none", data=str(tasks), held_out=["trec_*"], rows=60, held_rows=20)
    train, held = divided(config, BadRows())
    assert len(train) == 60 and len(held) == 20
    assert {p.split()[0] for p in _prompts(train)} == {"add_1", "add_2"}  # an equal share of each file
    assert {p.split()[0] for p in _prompts(held)} == {"trec_1", "trec_2"}


@pytest.mark.parametrize("patterns", [["nothing_*"], ["*"]])
def test_patterns_that_leave_one_side_empty_are_refused(tasks, patterns):
    with pytest.raises(DataError, match="of its 4 files"):
        divided(SftConfig(model="none", data=str(tasks), held_out=patterns), BadRows())


def test_a_question_never_stands_on_both_sides(tmp_path):
    rows = [{"instruction": f"question {i % 80}", "input": "", "output": f"answer {i}"} for i in range(400)]
    _write(tmp_path / "all.jsonl", rows)
    train, held = divided(SftConfig(model="none", data=str(tmp_path / "all.jsonl")), BadRows())
    assert held and train
    assert not {r["instruction"] for r in train} & {r["instruction"] for r in held}

    _write(tmp_path / "apart.jsonl", rows[:30])  # a separate file that repeats questions of the first
    config = SftConfig(model="none", data=str(tmp_path / "all.jsonl"), held_out=str(tmp_path / "apart.jsonl"))
    train, held = divided(config, BadRows())
    assert len(held) == 30 and not {r["instruction"] for r in train} & {r["instruction"] for r in held}


def test_the_end_marker_of_gpt3_sets_is_not_part_of_the_answer():
    row = {"prompt": "Say hi", "completion": "hi<|endoftext|>"}
    assert as_messages(row)[-1] == {"role": "assistant", "content": "hi"}
    assert as_messages({"prompt": "a", "completion": "<|endoftext|> stays inside"})[-1]["content"].startswith("<|end")


def test_losses_before_training_against_formulas():
    tokenizer = train_tokenizer(["answer one two three"] * 5, 300)
    rows = [{"prompt": f"q {i}", "completion": "answer one"} for i in range(8)]
    encoded = encode_rows(rows, tokenizer, 64)
    model = create_model("preset:laptop-0.3m", tokenizer, 64)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()  # all logits equal: every token costs log(vocabulary)
    found = answer_loss(model, encoded, tokenizer.pad_token_id, turn_end_id(tokenizer))
    uniform = float(torch.tensor(len(tokenizer)).log())
    assert found == pytest.approx({"val_loss": uniform, "val_content_loss": uniform}, rel=1e-5)
    # Answers are the same k tokens each time: the counting model gives each (1 + 8) / (8 k + vocabulary).
    k = sum(t != -100 for t in encoded[0]["labels"])
    expected = -torch.tensor(9 / (8 * k + len(tokenizer))).log()
    assert unigram_loss(encoded, encoded, len(tokenizer)) == pytest.approx(float(expected), rel=1e-5)
