"""docs/reasoning.md: its code runs, and its tables are those of the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import tutelage
from tests.icl.reasoning_engines import Scripted
from tutelage.icl.reasoning import METHODS, TRIGGERS

PAGE = (Path(__file__).parents[2] / "docs" / "reasoning.md").read_text(encoding="utf-8")


def test_the_code_runs(tmp_path, monkeypatch, capsys):
    (tmp_path / "gsm8k").mkdir()
    row = {"question": "One and one?", "answer": "1+1=2\n#### 2"}
    (tmp_path / "gsm8k" / "test.jsonl").write_text(json.dumps(row))
    monkeypatch.chdir(tmp_path)

    def say(text, j):
        if text.endswith("needed here:"):
            return " Yes.\nFollow up: One and one?\nIntermediate answer: made up"
        return "So the final answer is: 2." if "Intermediate answer: 2" in text else " It is 2. The answer is 2."

    monkeypatch.setattr(tutelage, "load", lambda path: Scripted(say))
    space: dict = {"search": lambda question: "2"}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S):
        exec(block, space)
    assert space["result"].accuracy == 1.0 and "2 True 1.0" in capsys.readouterr().out


def test_the_tables_are_those_of_the_code():
    for name in METHODS:
        assert PAGE.count(f"| `{name}` |") == 1 and PAGE.count(f"\n| {name} |") == 1
    cells = [re.sub(r" \((misleading|irrelevant)\)$", "", c.strip()) for c in PAGE.replace("\n", "|").split("|")]
    for trigger in TRIGGERS:
        assert cells[cells.index(trigger.text) + 1] == f"{trigger.accuracy}"
