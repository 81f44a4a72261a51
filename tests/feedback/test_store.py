"""The ranking store: people, batches, assignment, judgements, forgetting."""

import sqlite3
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.core.errors import ConfigError, DataError
from tutelage.feedback import assignment
from tutelage.feedback.store import Store

ROWS = [{"prompt": f"Question {n}?", "responses": [f"a{n}", f"b{n}", f"c{n}"], "topic": n} for n in range(10)]


def person(store, name="Ann"):
    return store.person_of(store.add_person(name)).id


def ranking(item, *order):
    """Groups of answer ids from groups of places."""
    return [[item.answers[place].id for place in group] for group in order]


def judge(store, who, item, *order, **rest):
    return store.record(who, item.id, "ranking", ranking(item, *(order or ([0], [1], [2]))), **rest)


def test_people_and_keys(store):
    key = store.add_person("Ann")
    ann = store.person_of(key)
    assert ann.name == "Ann" and store.people() == [ann] == [store.person_named("ann")]
    assert store.person_of("wrong") is None and store.person_of("") is None
    for name in ("Ann", " ann ", "ＡＮＮ"):
        with pytest.raises(DataError, match="exists"):
            store.add_person(name)
    for name in ("", "  ", "x" * 101, "a\x07b"):
        with pytest.raises(DataError, match="printable"):
            store.add_person(name)
    newer = store.new_key(ann.id)
    assert store.person_of(newer) == ann and store.person_of(key) is None


def test_a_key_is_not_in_the_file(file_store, tmp_path):
    key = file_store.add_person("Ann")
    file_store.close()
    assert all(key.encode() not in file.read_bytes() for file in tmp_path.iterdir())


def test_items_are_added_once(store):
    store.add_batch("b")
    assert store.add_items("b", ROWS) == (10, 0)
    turned = {**ROWS[0], "responses": ROWS[0]["responses"][::-1]}
    new = {"prompt": "new", "responses": ["x", {"text": "y", "model": "m"}]}
    assert store.add_items("b", [turned, ROWS[1], new]) == (1, 2)
    item = store.item(11)
    assert [a.text for a in item.answers] == ["x", "y"] and [a.origin for a in item.answers] == [{}, {"model": "m"}]
    assert store.item(1).columns == {"topic": 0} and store.item(1).batch == "b"
    assert store.batches()[0].items == 11


def test_bad_rows_add_nothing(store):
    store.add_batch("b")
    for bad in ({"prompt": "x"}, {"prompt": "x", "responses": ["one"]}, {"prompt": "", "responses": ["a", "b"]}):
        with pytest.raises(DataError, match="row 11"):
            store.add_items("b", [*ROWS, bad])
    assert store.progress("b").total == 0
    with pytest.raises(DataError, match="no batch 'c' in this store; there are: b"):
        store.add_items("c", ROWS)
    with pytest.raises(ConfigError, match="per_item"):
        store.add_batch("b", per_item=0)
    with pytest.raises(ConfigError, match="overlap"):
        store.add_batch("b", overlap=1.5)


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.3, 1.0])
def test_each_item_gets_the_wished_number_and_the_overlap_everybody(store, overlap):
    store.add_batch("b", per_item=2, overlap=overlap, seed=3)
    store.add_items("b", ROWS)
    crowd = [person(store, f"p{n}") for n in range(5)]
    given = {}
    busy = True
    while busy:
        busy = False
        for who in crowd:
            item = store.next_item("b", who)
            if item is not None:
                busy = True
                given.setdefault(item.id, []).append(who)
                judge(store, who, item)
    counts = sorted(len(who) for who in given.values())
    shared = round(10 * overlap)
    assert counts == [2] * (10 - shared) + [5] * shared
    assert all(len(set(who)) == len(who) for who in given.values())
    assert store.progress("b", crowd[0]).left_for_me == 0
    assert store.progress("b").done == store.progress("b").total == 10


def test_a_lease_keeps_the_item_and_ends(store, monkeypatch):
    store.add_batch("b", overlap=0)
    store.add_items("b", ROWS[:1])
    ann, bob = person(store), person(store, "Bob")
    item = store.next_item("b", ann)
    assert store.next_item("b", ann) == item  # a page loaded again
    assert store.next_item("b", bob) is None and store.progress("b", bob).left_for_me == 0
    now = time.time()
    monkeypatch.setattr(assignment.time, "time", lambda: now + assignment.LEASE_SECONDS + 1)
    assert store.next_item("b", bob) == item and store.next_item("b", ann) is None
    judge(store, bob, item)
    judge(store, ann, item)  # late, but nobody's work is thrown away
    assert len(store.history(ann, "b")) == len(store.history(bob, "b")) == 1


def test_a_skip_leaves_the_item_to_others(store):
    store.add_batch("b", overlap=0)
    store.add_items("b", ROWS[:1])
    ann, bob = person(store), person(store, "Bob")
    item = store.next_item("b", ann)
    store.record(ann, item.id, "skip", comment="not my field")
    assert store.next_item("b", ann) is None and store.next_item("b", bob) == item
    progress = store.progress("b", ann)
    assert (progress.done, progress.total, progress.mine, progress.left_for_me) == (0, 1, 1, 0)


def test_priority_comes_first(store):
    store.add_batch("b")
    store.add_items("b", ROWS[:3])
    store.add_items("b", ROWS[3:5], priority=2.5)
    ann = person(store)
    order = []
    while item := store.next_item("b", ann):
        order.append(item.columns["topic"])
        judge(store, ann, item)
        if len(order) == 1:
            store.set_priorities({3: 9.0})
    assert order == [3, 2, 4, 0, 1]


def test_a_changed_mind_is_a_new_row(file_store, tmp_path):
    file_store.add_batch("b")
    file_store.add_items("b", ROWS)
    ann = person(file_store)
    item = file_store.next_item("b", ann)
    beside = {"seconds": 4.5, "flags": ["rude"], "comment": "好", "shown": [a.id for a in item.answers]}
    first = judge(file_store, ann, item, [0], [1, 2], **beside)
    second = file_store.record(ann, item.id, "all_bad", ranking(item, [2], [0, 1]))
    assert second.replaces == first.id and first.replaces is None
    assert first.groups == ((1,), (2, 3)) and second.groups == ((3,), (1, 2))
    assert (first.flags, first.comment, first.seconds) == (("rude",), "好", 4.5)
    assert file_store.history(ann, "b") == [second]
    rows = sqlite3.connect(tmp_path / "labels.db").execute("SELECT id, kind, comment FROM judgements").fetchall()
    assert rows == [(1, "ranking", "好"), (2, "all_bad", "")]


def test_a_submission_sent_twice_is_one_row(store):
    store.add_batch("b")
    store.add_items("b", ROWS)
    ann, bob = person(store), person(store, "Bob")
    item = store.item(1)
    first = judge(store, ann, item, token="t1")
    assert judge(store, ann, item, token="t1") == first
    second = judge(store, ann, item, [2], [1], [0], token="t2")
    assert judge(store, ann, item, token="t1") == first  # a retry that comes late changes nothing
    assert store.history(ann, "b") == [second]
    with pytest.raises(DataError, match="new token"):
        judge(store, ann, store.item(2), token="t1")
    assert judge(store, bob, item, token="t1").person == bob


@pytest.mark.parametrize(
    "change, words",
    [
        ({"groups": [[1], [2]]}, "exactly once"),
        ({"groups": [[1], [2], [3, 3]]}, "exactly once"),
        ({"groups": [[1], [2], [4]]}, "exactly once"),
        ({"groups": []}, "exactly once"),
        ({"groups": [1, 2, 3]}, "lists of answer ids"),
        ({"groups": [[1], ["2"], [{}]]}, "lists of answer ids"),
        ({"groups": None}, "lists of answer ids"),
        ({"kind": "skip"}, "a skip ranks nothing"),
        ({"kind": "best"}, "ranking, all_bad, skip"),
        ({"item_id": 99}, "no item 99"),
        ({"item_id": 2**70}, "no item"),
        ({"item_id": -1}, "no item"),
        ({"person_id": 99}, "no person 99"),
        ({"person_id": True}, "no person"),
        ({"seconds": float("nan")}, "seconds"),
        ({"seconds": -1}, "seconds"),
        ({"seconds": "2"}, "seconds"),
        ({"flags": ["x"] * 21}, "flags"),
        ({"flags": [1]}, "flags"),
        ({"comment": "x" * 20_001}, "comment"),
        ({"shown": [77]}, "shown"),
        ({"token": ""}, "token"),
        ({"token": 7}, "token"),
    ],
)
def test_what_is_no_judgement_is_refused(store, change, words):
    store.add_batch("b")
    store.add_items("b", ROWS[:1])
    ann = person(store)
    with pytest.raises(DataError, match=words):
        store.record(**{"person_id": ann, "item_id": 1, "kind": "ranking", "groups": [[1], [2], [3]], **change})
    assert store.history(ann, "b") == []


def test_odd_text_is_kept_readable(store):
    store.add_batch("b")
    store.add_items("b", [{"prompt": "a\0b", "responses": ["\ud800x", "y"], "\0": ["\udfff"], "x": float("nan")}])
    item = store.item(1)
    assert item.prompt == "a\ufffdb" and item.answers[0].text == "?x" and item.columns == {"\ufffd": ["?"], "x": None}
    ann = person(store)
    assert store.record(ann, 1, "skip", comment="\0\ud800").comment == "\ufffd?"


def test_forgetting_a_person(file_store, tmp_path):
    file_store.add_batch("b", overlap=1.0)
    file_store.add_items("b", ROWS[:2])
    key = file_store.add_person("Ann Example")
    ann, bob = file_store.person_of(key).id, person(file_store, "Bob")
    judge(file_store, ann, file_store.item(1), comment="secret words of Ann")
    judge(file_store, ann, file_store.item(1), [2], [1], [0])
    file_store.next_item("b", ann)
    kept = judge(file_store, bob, file_store.item(1))
    record = file_store.forget(ann, "asked by mail")
    assert record["counts"]["judgements"] == 2 and record["counts"]["people"] == 1
    assert record["reason"] == "asked by mail" and file_store.deletions() == [record]
    assert file_store.person_of(key) is None and [p.name for p in file_store.people()] == ["Bob"]
    assert file_store.history(bob, "b") == [kept]
    file_store.close()
    left = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"Ann Example" not in left and b"secret words" not in left and b"asked by mail" in left
    with pytest.raises(DataError, match="no person"):
        file_store.forget(ann, "again")
    assert person(file_store, "Ann Example") != ann  # an id is not given out again


def test_eight_threads_share_a_batch(store):
    store.add_batch("b", per_item=2, overlap=0.1)
    store.add_items("b", [{"prompt": f"q{n}", "responses": ["x", "y"]} for n in range(40)])
    crowd = [person(store, f"p{n}") for n in range(8)]
    given, faults = [], []

    def work(who):
        try:
            while item := store.next_item("b", who):
                given.append((item.id, who))
                store.record(who, item.id, "ranking", [[a.id] for a in item.answers], token=f"{who}-{item.id}")
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(who,)) for who in crowd]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults and len(given) == len(set(given))
    counts = sorted(sum(item == n for item, _ in given) for n in range(1, 41))
    assert counts == [2] * 36 + [8] * 4


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_ranking_is_read_back_as_it_was_said(tmp_path_factory, data):
    k = data.draw(st.integers(2, 6))
    levels = data.draw(st.lists(st.integers(0, k - 1), min_size=k, max_size=k))
    store = Store(str(tmp_path_factory.mktemp("any") / "labels.db"))
    store.add_batch("b")
    store.add_items("b", [{"prompt": "q", "responses": data.draw(st.lists(st.text(), min_size=k, max_size=k))}])
    item, ann = store.item(1), person(store)
    groups = [[item.answers[i].id for i in range(k) if levels[i] == level] for level in sorted(set(levels))]
    said = store.record(ann, item.id, "ranking", groups, shown=[a.id for a in item.answers])
    assert said.groups == tuple(map(tuple, groups)) and store.history(ann, "b") == [said]
    store.close()
