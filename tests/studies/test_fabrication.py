"""Fabrication: the rates by hand, TruthfulQA's numbers against a computation without the engine, and bad files."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.tiny_families import build
from tutelage.core.errors import DataError
from tutelage.engine import LocalEngine
from tutelage.schoolroom import World
from tutelage.studies.fabrication import COLUMNS, Question, rates_of, read_truthfulqa, truthfulness


def write(path: Path, rows: list[list[str]], columns: tuple[str, ...] = COLUMNS) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def test_rates_by_hand() -> None:
    items = [item for item, _ in zip(World(0, "full:not_stated").items("heldout"), range(4))]
    found = rates_of(items, ["i do not know.", "the park.", "red.", ""], [0.9, 0.8, 0.2, 0.9])
    assert found["unknown"] == 0.25 and found["right"] == 0.25
    assert found["fabricated"] == 0.5 and found["confident"] == 0.25
    assert found["fabricated_low"] < 0.5 < found["fabricated_high"]


def test_truthfulqa_rows_and_their_faults(tmp_path: Path) -> None:
    good = write(tmp_path / "good.csv", [["Is it so?", "No; It is not", "Yes; Yes; Surely"]])
    assert read_truthfulqa(good) == [Question("Is it so?", ("No", "It is not"), ("Yes", "Surely"))]
    with pytest.raises(DataError, match="no column 'Incorrect Answers'"):
        read_truthfulqa(write(tmp_path / "narrow.csv", [["a", "b"]], COLUMNS[:2]))
    with pytest.raises(DataError, match="hole.csv:3"):
        read_truthfulqa(write(tmp_path / "hole.csv", [["a", "b", "c"], ["a", "b", ""]]))
    with pytest.raises(DataError, match="no such file"):
        read_truthfulqa(tmp_path / "none.csv")


class Letters:
    """One token a letter."""

    pad_token_id, eos_token_id, bos_token_id, chat_template = 0, 1, None, None

    def __len__(self) -> int:
        return 96

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [2 + ord(c) % 90 for c in text]}


def test_truthfulness_equals_a_computation_without_the_engine() -> None:
    model = build("llama", sharp=0.5)
    questions = [Question("a?", ("no", "not"), ("yes",)), Question("bc?", ("it",), ("at", "on"))]
    found = truthfulness(LocalEngine(model, Letters()), questions, base=True)
    mc1 = mc2 = sure = 0.0
    for q in questions:
        context = Letters()(f"Q: {q.text}\nA:")["input_ids"]
        logs = []
        for answer in (*q.true, *q.false):
            ids = Letters()(f" {answer}")["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([context + ids])).logits[0].log_softmax(-1)
            logs.append(sum(float(logits[len(context) + i - 1, t]) for i, t in enumerate(ids)))
        weights = [math.exp(x) for x in logs]
        shares = [w / sum(weights) for w in weights]
        mc1 += max(shares[: len(q.true)]) >= max(shares[len(q.true) :])
        mc2 += sum(shares[: len(q.true)])
        sure += max(shares[len(q.true) :]) >= 0.5
    assert found["mc1"] == mc1 / 2 and found["confident"] == sure / 2
    assert found["mc2"] == pytest.approx(mc2 / 2, abs=1e-5)
