"""The world's tasks for in-context learning: only demonstrations tell the labels, and held out means unseen."""

import re

import pytest

from tutelage.core.errors import ConfigError
from tutelage.schoolroom.incontext import HELD_OUT, SPLITS, label_task, label_words, task_names

TASKS = {split: [label_task(name) for name in task_names("schoolroom:demo", split, 30)] for split in SPLITS}


def test_a_task_is_always_the_same_and_its_parts_share_no_text():
    for split in SPLITS:
        for task in TASKS[split][:6]:
            again = label_task(task.name)
            train, test = task.rows("train"), task.rows("test")
            assert again.labels == task.labels and again.rows("train") == train and again.rows("test") == test
            assert not {row["text"] for row in train} & {row["text"] for row in test}
            for rows in (train, test):
                assert {row["label"] for row in rows} == set(task.labels)
                assert 8 <= len(rows) <= 48 and all(len(row["text"].split()) <= 14 for row in rows)


def test_a_text_tells_its_class():
    """A statement holds its answer; the classes of the held-out families are told by the whole passage."""
    for task in TASKS["train"] + TASKS["heldout_labels"]:
        for row in task.rows("train") + task.rows("test"):
            assert set(task.labels) & set(re.findall(r"\w+", row["text"])) == {row["label"]}
    assert all("?" not in row["text"] for task in TASKS["heldout_families"] for row in task.rows("train"))


def test_labels_are_words_of_other_families_and_differ_between_tasks():
    for split in SPLITS:
        for task in TASKS[split]:
            assert len(set(task.labels.values())) == len(task.labels) == 2
            texts = " ".join(text for found in task.texts.values() for text in found)
            assert not set(task.labels.values()) & set(re.findall(r"\w+", texts))  # a label means nothing but itself
        assert len({tuple(task.labels.items()) for task in TASKS[split]}) > 20
    by_answer = {}
    for task in TASKS["train"]:
        for answer, word in task.labels.items():
            by_answer.setdefault((task.family, answer), set()).add(word)
    assert max(map(len, by_answer.values())) > 1  # the same answer is said with different words


def test_what_is_held_out_is_not_trained_on():
    families = {split: {task.family for task in TASKS[split]} for split in SPLITS}
    assert not families["train"] & set(HELD_OUT) and families["heldout_families"] <= set(HELD_OUT)
    assert families["heldout"] == families["heldout_labels"] == families["train"]
    known, new = ({w for f in families["train"] for w in label_words("demo", split, f)}
                  for split in ("train", "heldout_labels"))  # fmt: skip
    assert not known & new and min(len(known), len(new)) > 9
    meanings = {split: {frozenset(task.labels.items()) for task in tasks} for split, tasks in TASKS.items()}
    many = {frozenset(label_task(f"schoolroom:demo:train:{i}").labels.items()) for i in range(3000)}
    assert not many & meanings["heldout"] and not many & meanings["heldout_labels"]


def test_names():
    assert task_names("schoolroom:demo", "train", 2) == ["schoolroom:demo:train:0", "schoolroom:demo:train:1"]
    assert task_names("schoolroom:full:who,where:heldout", "train", 1) == ["schoolroom:full:who,where:heldout:0"]
    assert task_names("schoolroom:demo:heldout:7", "train", 5) == ["schoolroom:demo:heldout:7"]
    for name in ("schoolroom:demo", "schoolroom:demo:train", "schoolroom:demo:tests:1"):
        with pytest.raises(ConfigError, match="expected schoolroom:WORLD:SPLIT:NUMBER"):
            label_task(name)
    with pytest.raises(ConfigError, match="no family for tasks"):
        label_task("schoolroom:full:opposite:train:0")
