"""Every code block of docs/instructions.md runs, with a scripted engine behind it; and a server's refusals are said."""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.icl.instruction_helpers import REVIEWS, ScriptedEngine, review
from tests.servers import JsonHandler, serving
from tutelage.core.errors import DataError
from tutelage.engine import load
from tutelage.icl.instructions import MetaPrompts, Pair, execution_judge, likelihood_judge, metric
from tutelage.icl.tasks import Task

TEXT = (Path(__file__).parents[2] / "docs/instructions.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.M | re.S)


def task_folder(folder: Path) -> None:
    rows = {str(i): {"input": f"word {i}", "output": f"other {i}"} for i in range(1, 8)}
    for name, examples in (
        ("raw/execute", rows), ("induction_input", {"1": {"input": "Input: a\nOutput: b\n\nThe instruction was"}}),
    ):  # fmt: skip
        path = folder / "instruction_induction" / name / "synonyms.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"examples": examples}))


@pytest.mark.parametrize("block", blocks("python"))
def test_the_code_of_the_page_runs(block, tmp_path, monkeypatch, capsys):
    task_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    numbers = itertools.count()
    engine = ScriptedEngine(
        lambda prompt: [f" a new review with number {next(numbers)} in it\nSentiment: good"],
        lambda context, text: [-1.0 - len(context + text) % 7],
    )
    reviews = [review(f"a film of {n} hours", n % 2) for n in range(8)]
    given = {
        "engine": engine, "task": Task(name="reviews", format=REVIEWS), "demonstrations": reviews[:4],
        "train": reviews, "held_out": reviews, "examples": reviews, "my_translator": lambda texts: ["Good, or bad?"],
    }  # fmt: skip
    exec(compile(block, "docs/instructions.md", "exec"), given)
    assert given["found"] and engine.generated + engine.scored


def test_the_prompts_of_the_page_load():
    found = blocks("toml")
    assert found
    for block in found:
        MetaPrompts.model_validate(tomllib.loads(block))


class Handler(JsonHandler):
    """Answers "cold" and has no log-probs."""

    def do_GET(self) -> None:
        self.answer({"data": [{"id": "m"}]})

    def do_POST(self) -> None:
        self.body()
        self.answer({"choices": [{"text": " cold", "finish_reason": "stop"}]})


def test_over_a_server_without_log_probs_execution_works_and_likelihood_says_why_not():
    asked = [("write the opposite", Pair("hot", ("cold",))), ("write the opposite", Pair("up", ("down",)))]
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as url:
        engine = load(url)
        assert execution_judge(engine, metric("em"))(asked) == [1.0, 0.0]
        with pytest.raises(DataError, match="likelihood of answers: 2 of 2 failed"):
            likelihood_judge(engine)(asked)
