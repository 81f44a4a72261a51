"""Problems from small files of every known shape, and what bad ones are told."""

from __future__ import annotations

import json
import re

import pytest

from tutelage.core.errors import DataError
from tutelage.core.records import BadRows
from tutelage.icl.reasoning.exemplars import CHAINS, SELF_ASK, STEPS
from tutelage.icl.reasoning.problems import Problem, read_problems


def write(path, rows, lines=False):
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows, indent=1))
    return path


def one(tmp_path, row, name="data.json", **named):
    return read_problems(write(tmp_path / name, [row]), **named)[0]


def test_known_shapes(tmp_path):
    gsm = {"question": "How many?", "answer": "She has 2*3 = <<2*3=6>>6 eggs.\nAnd 1,200 more\n#### 1,206"}
    assert one(tmp_path, gsm) == Problem("How many?", "1206", (), "number", "She has 2*3 = 6 eggs. And 1,200 more.")
    assert one(tmp_path, {"sQuestion": " How  many? ", "lSolutions": ["43"]}).answer == "43"
    svamp = {"Body": "Ann has 3", "Question": "How many?", "Answer": 3.0}
    assert one(tmp_path, svamp) == Problem("Ann has 3. How many?", "3")
    aqua = one(tmp_path, {"question": "?", "options": ["A)1", "B) x + 2"], "rationale": "so\nB", "correct": "B"})
    assert aqua == Problem("?", "B", ("1", "x + 2"), "choice", "so B") and aqua.text.endswith("(A) 1 (B) x + 2")
    asked = {"stem": "Where?", "choices": [{"label": "A", "text": "here"}, {"label": "B", "text": "there"}]}
    assert one(tmp_path, {"question": asked, "answerKey": "A"}).options == ("here", "there")
    yes = {"input": "Is it?", "target_scores": {"Yes": 1, "No": 0}, "target": "Yes. It  is."}
    assert one(tmp_path, yes) == Problem("Is it?", "yes", (), "yes_no", "It is.")
    hard = {"input": "When?\nOptions:\n(A) today\n(B) never", "target": "(B)"}
    assert one(tmp_path, hard) == Problem("When?", "B", ("today", "never"), "choice")


def test_options_that_list_the_right_one_first_are_shuffled_alike_every_time(tmp_path):
    rows = [{"input": f"Day {i}?", "target_scores": {"mon": 1, "tue": 0, "wed": 0}} for i in range(60)]
    path = tmp_path / "task.json"
    path.write_text(json.dumps({"name": "days", "examples": rows}))
    first = read_problems(path)
    assert first == read_problems(path) and first != read_problems(path, seed=1)
    assert {p.answer for p in first} == {"A", "B", "C"}
    assert all(p.options["ABC".index(p.answer)] == "mon" for p in first)


def test_plain_rows_and_kinds(tmp_path):
    numbers = write(tmp_path / "n.jsonl", [{"question": "a", "answer": 3}, {"question": "b", "answer": "4.5"}], True)
    assert [p.kind for p in read_problems(numbers)] == ["number"] * 2
    mixed = write(tmp_path / "m.jsonl", [{"question": "a", "answer": "no"}, {"question": "b", "answer": "nk"}], True)
    assert [p.kind for p in read_problems(mixed)] == ["text"] * 2
    coins = {"examples": [{"question": "heads?", "answer": "Yes"}]}
    (tmp_path / "coin.json").write_text(json.dumps(coins))
    assert read_problems(tmp_path / "coin.json")[0].answer == "yes"
    other = write(tmp_path / "o.jsonl", [{"q": "a?", "a": "y", "why": "so", "opts": ["x", "y"]}], True)
    named = read_problems(other, question="q", answer="a", rationale="why", options="opts")
    assert named == [Problem("a?", "B", ("x", "y"), "choice", "so")]
    assert read_problems(numbers, limit=1) == [Problem("a", "3")]
    assert len(read_problems(tmp_path, limit=4)) == 4  # a folder: its files in name order


def test_transcripts_of_papers(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("Sort it out.\n\nQ: 1+1?\nA: Let's think step by step.\nOne and\none. So the answer is 2.\n\n"
                    "Q: 2+2?\nA: Two and <<2>>two.\n#### 4\n")  # fmt: skip
    assert read_problems(path) == [
        Problem("1+1?", "2", (), "number", "One and one."), Problem("2+2?", "4", (), "number", "Two and two."),
    ]  # fmt: skip
    path.write_text("Q: 1+1?\nA: two\n")
    with pytest.raises(DataError, match=r"prompt\.txt:1: expected 'Q"):
        read_problems(path)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "?"}, "no 'answer' .keys: question"),
        ({"question": 3, "answer": "1"}, "'question' is a int"),
        ({"question": "?", "answer": "so\n#### many"}, "'many', expected a number"),
        ({"question": " ", "answer": "1"}, "the question is empty"),
        ({"sQuestion": "?", "lSolutions": [1, 2]}, "'lSolutions' has 2 items"),
        ({"question": "?", "options": ["A)1", "C)2"], "correct": "A"}, "'C.2' where option B belongs"),
        ({"question": "?", "options": ["A)1", "B)2"], "correct": "F"}, "'F', expected one of A, B"),
        ({"question": {"stem": "?"}, "answerKey": "A"}, "no 'choices'"),
        ({"input": "?", "target_scores": {"a": 1, "b": 1}}, "2 options of score 1"),
        ({"question": "?", "answer": "yes", "options": "ab"}, "'options' is a str"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, words):
    path = write(tmp_path / "bad.jsonl", [row], True)
    with pytest.raises(DataError, match=rf"bad\.jsonl:1: .*{words}"):
        read_problems(path)


def test_bad_files(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_problems(tmp_path / "none.json")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="no problems in it"):
        read_problems(tmp_path / "empty.jsonl")
    (tmp_path / "list.json").write_text('{"examples": [3]}')
    with pytest.raises(DataError, match="example 1 is a int"):
        read_problems(tmp_path / "list.json")
    (tmp_path / "broken.json").write_text("[{]")
    with pytest.raises(DataError, match=r"broken\.json:1: not JSON"):
        read_problems(tmp_path / "broken.json")


def test_our_demonstrations_say_what_they_claim():
    assert len(CHAINS["number"]) == 8
    for kind, shown in CHAINS.items():
        for problem in shown:
            assert problem.kind == kind and problem.rationale.endswith(".")
            assert problem.read(f"{problem.rationale} The answer is {problem.shown_answer}.") == problem.answer
            if kind == "number":  # every step is true
                for step in re.findall(r"(\d+(?: [-+*/] \d+)+) = (\d+)", problem.rationale):
                    assert eval(step[0]) == int(step[1]), step
            if kind == "text":
                words = problem.question.split('"')[1].split()
                assert "".join(word[-1] for word in words) == problem.answer
    assert set(STEPS) == set(CHAINS) and len(SELF_ASK) == 4


def test_bad_rows_can_be_left_out(tmp_path):
    rows = [{"question": "a?", "answer": "1"}, {"question": "b?"}, {"question": "", "answer": "2"}]
    bad = BadRows("skip")
    assert read_problems(write(tmp_path / "d.jsonl", rows, True), bad=bad) == [Problem("a?", "1")]
    assert bad.count == 2 and "d.jsonl:2: no 'answer'" in bad.first[0]
