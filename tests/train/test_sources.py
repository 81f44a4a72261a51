"""Rows from files: prompts and conversations divide by what is asked, bad rows are named or skipped and counted."""

import json

import pytest

from tutelage.core.errors import ConfigError, DataError, RewardError
from tutelage.core.records import BadRows
from tutelage.train.sources import conversations, demonstration, prompts, rankings, texts, truth


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


def pair(question, number, **more):
    return {"prompt": question, "chosen": f"good {number}", "rejected": f"bad {number}", **more}


def test_rankings_divide_by_the_first_question(tmp_path):
    rows = [pair(f"question {i % 100}", i) for i in range(400)]
    rows += [  # a later turn of the same conversation stays with its first
        pair([{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": "so"},
              {"role": "user", "content": "and?"}], i) for i in range(100)]  # fmt: skip
    train, held = rankings(write(tmp_path / "p.jsonl", rows))
    sides = [{r["prompt"] if isinstance(r["prompt"], str) else r["prompt"][0]["content"] for r in side}
             for side in (train, held)]  # fmt: skip
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 100 and len(train) + len(held) == 500
    assert 3 <= len(sides[1]) <= 20
    backwards = rankings(write(tmp_path / "q.jsonl", rows[::-1]))[1]
    assert {str(r["prompt"]) for r in backwards} == {str(r["prompt"]) for r in held}


def test_rankings_held_out_may_be_another_file_whose_questions_leave_the_training_rows(tmp_path):
    data = write(tmp_path / "p.jsonl", [pair(f"question {i}", i) for i in range(20)])
    apart = write(tmp_path / "h.jsonl", [pair(f"question {i}", i) for i in range(5)] + [pair("new", 1)])
    train, held = rankings(data, apart)
    assert len(train) == 15 and len(held) == 6
    with pytest.raises(DataError, match="every question also stands in held_out="):
        rankings(data, data)
    with pytest.raises(DataError, match="one prompt alone, .*give held_out=FILE"):
        rankings(write(tmp_path / "one.jsonl", [pair("only", i) for i in range(9)]))


def test_rankings_come_from_folders_and_from_rank(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.json", [pair(f"{name} {i}", i) for i in range(20)])
    train, held = rankings(str(tmp_path))
    assert len(train) + len(held) == 40
    for name, count in (("rankings", 6), ("heldout", 2)):
        rows = [{"prompt": f"{name} {i}", "responses": ["x", "y"], "ranking": [[0], [1]]} for i in range(count)]
        write(tmp_path / f"{name}.jsonl", rows)
    assert [len(side) for side in rankings(str(tmp_path))] == [6, 2]
    (tmp_path / "heldout.jsonl").unlink()
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="expected a finished `rank`"):
        rankings(str(tmp_path))


def test_bad_rankings_stop_with_file_and_line_or_are_skipped_and_counted(tmp_path):
    rows = [pair("a", 1), {"prompt": "b", "chosen": "x", "rejected": "x"}, pair("c", 3), "[1]",
            {"prompt": "d", "responses": ["x"], "ranking": [[0]]}, pair("e", 5, p_chosen=2)]  # fmt: skip
    data = write(tmp_path / "p.jsonl", rows)
    with pytest.raises(DataError, match=r"p.jsonl:2: 'chosen' and 'rejected' are the same"):
        rankings(data)
    bad = BadRows("skip")
    train, held = rankings(data, bad=bad)
    assert len(train) + len(held) == 2 and bad.count == 4
    assert [fault.split(": ")[0].rpartition(":")[2] for fault in bad.first] == ["2", "4", "5", "6"]
    with pytest.raises(DataError, match="no rows"):
        rankings(write(tmp_path / "e.jsonl", []))


def test_annotators_of_one_prompt_are_joined(tmp_path):
    both = {"responses": ["x", "y"]}
    rows = [{"prompt": f"p{i}", **both, "ranking": [[i % 2], [1 - i % 2]], "annotator": 0} for i in range(9)]
    rows += [{"prompt": f"p{i}", **both, "ranking": [[0], [1]], "annotator": 1} for i in range(9)]
    train, held = rankings(write(tmp_path / "p.jsonl", rows))
    assert len(train) + len(held) == 9 and sum("p_better" in row for row in train + held) == 4
