"""Rows from files: prompts and conversations divide by what is asked, bad rows are named or skipped and counted."""

import json

import pytest

from tutelage.core.errors import ConfigError, DataError, RewardError
from tutelage.core.records import BadRows
from tutelage.train.sources import conversations, demonstration, prompts, texts, truth


def write(path, rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return str(path)


def test_prompts_divide_by_prompt_in_any_order(tmp_path):
    rows = [{"prompt": f"question {i % 300}", "column": i} for i in range(600)]  # each asked twice
    data = write(tmp_path / "p.jsonl", rows)
    train, held = prompts(data, "train", 10**6, 0), prompts(data, "heldout", 10**6, 0)
    asked, kept = {r["prompt"] for r in train}, {r["prompt"] for r in held}
    assert not asked & kept and len(asked | kept) == 300 and len(train) + len(held) == 600
    assert 15 <= len(kept) <= 45
    again = write(tmp_path / "q.jsonl", rows[::-1])
    assert {r["prompt"] for r in prompts(again, "heldout", 10**6, 0)} == kept
    assert len(prompts(data, "train", 7, 0)) == 7 and len(prompts(data, "all", 10**6, 0)) == 600
    with pytest.raises(ConfigError, match="heldout"):
        prompts(data, "test", 3, 0)


@pytest.mark.parametrize("count", range(2, 12))
def test_a_small_file_still_has_both_sides(tmp_path, count):
    data = write(tmp_path / "p.jsonl", [{"prompt": f"small {i}"} for i in range(count)])
    train, held = prompts(data, "train", 100, 0), prompts(data, "heldout", 100, 0)
    assert held and train and len(train) + len(held) == count


def test_one_prompt_trains_and_cannot_be_held_out(tmp_path):
    data = write(tmp_path / "p.jsonl", [{"prompt": "only"}])
    assert len(prompts(data, "train", 5, 0)) == 1
    with pytest.raises(DataError, match="at least 2"):
        prompts(data, "heldout", 5, 0)


def test_conversations_divide_by_the_question(tmp_path):
    def row(i, j):
        turns = [("system", "be kind"), ("user", f"ask {i}"), ("assistant", f"answer {j}")]
        return {"messages": [{"role": r, "content": c} for r, c in turns]}

    data = write(tmp_path / "c.jsonl", [row(i, j) for i in range(100) for j in range(2)])
    sides = [{r["messages"][1]["content"] for r in conversations(data, s, 1000, 0)} for s in ("train", "heldout")]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 100


def test_bad_rows_stop_with_file_and_line_or_are_skipped_and_counted(tmp_path):
    good = {"prompt": "hello", "completion": "yes?"}
    rows = [good, "{broken", {"prompt": "no answer"}, {"other": 1}, {**good, "prompt": "x"}]
    data = write(tmp_path / "c.jsonl", rows)
    with pytest.raises(DataError, match=r"c.jsonl:2: not JSON"):
        conversations(data, "train", 10, 0)
    bad = BadRows("skip")
    assert len(conversations(data, "all", 10, 0, bad)) == 2
    assert bad.count == 3 and [f.split(": ")[0].rpartition(":")[2] for f in bad.first] == ["2", "3", "4"]
    with pytest.raises(DataError, match=r'p.jsonl:1: no .prompt. .*expected \{"prompt"'):
        prompts(write(tmp_path / "p.jsonl", [{"question": "?"}]), "train", 10, 0)
    with pytest.raises(DataError, match="no rows"):
        conversations(write(tmp_path / "e.jsonl", []), "train", 10, 0)
    bad = BadRows("skip")
    data = write(tmp_path / "t.jsonl", [{"text": "a"}, {"txt": "b"}, {"text": "c"}])
    assert list(texts(data, "train", 10, bad=bad)) == ["a", "c"] and bad.count == 1


def test_a_function_gives_rows_and_texts(tmp_path):
    file = tmp_path / "made.py"
    file.write_text(
        "def asks():\n    yield from ({'prompt': f'p {i}', 'completion': str(i)} for i in range(50))\n"
        "def stories():\n    yield from ({'text': t} for t in ('one', 'two'))\n"
        "def broken():\n    yield {'prompt': 'fine', 'text': 'fine'}\n    yield {'promt': 'x'}\n"
    )
    train, held = (prompts(f"{file}:asks", split, 99, 0) for split in ("train", "heldout"))
    assert len(train) + len(held) == 50 and held and demonstration(held[0]) == held[0]["completion"]
    assert len(conversations(f"{file}:asks", "all", 99, 0)) == 50
    assert list(texts(f"{file}:stories", "all", 9)) == ["one", "two"]
    for read in (prompts, texts):
        with pytest.raises(DataError, match=r"made.py:broken: row 2: no '(prompt|text)'"):
            list(read(f"{file}:broken", "all", 9, 0))
    skipped = BadRows("skip")
    assert len(prompts(f"{file}:broken", "all", 9, 0, skipped)) == 1 and skipped.count == 1
    with pytest.raises(RewardError, match="no function 'nothing'"):
        prompts(f"{file}:nothing", "all", 9, 0)


def test_the_truth_is_what_was_given_else_the_worlds_own(tmp_path):
    assert truth("schoolroom:demo", None) is not None and truth("rows.jsonl", None) is None
    given = truth("schoolroom:demo", lambda prompts, completions, **columns: [1.0 for _ in completions])
    assert given is not None and given(["p"], ["c"]) == [1.0]
