"""What goes into the store and what comes out: imports, exports, prompts, demonstrations, votes, agreement."""

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tutelage.core.errors import ConfigError, DataError
from tutelage.core.records import RankingRow, check_row
from tutelage.feedback.personal import find_personal, mask_personal
from tutelage.feedback.prompts import split_of
from tutelage.feedback.store import Store
from tutelage.train.sources import conversations, rankings

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@pytest.fixture
def store(url):
    """A store with a batch, in a file and on a server."""
    found = Store(url)
    found.add_batch("b")
    yield found
    found.close()


def person(store, name="Ann"):
    return store.person_of(store.add_person(name)).id


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def same_order(row):
    """A row's ranking as groups of texts, whatever order its responses stand in."""
    return [sorted(row["responses"][i] for i in group) for group in row["ranking"]]


@st.composite
def ranking_rows(draw):
    k = draw(st.integers(2, 5))
    levels = draw(st.lists(st.integers(0, k - 1), min_size=k, max_size=k))
    groups = [[i for i in range(k) if levels[i] == level] for level in sorted(set(levels))]
    prompt = draw(st.one_of(TEXTS.filter(str.strip), st.just([{"role": "user", "content": "你好"}])))
    return {
        "prompt": prompt,
        "responses": draw(st.lists(TEXTS, min_size=k, max_size=k, unique=True)),
        "ranking": groups,
        "annotator": draw(st.sampled_from(["ann@example.com", "bob", "10.0.0.1"])),
        "topic": draw(st.integers()),
    }


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ranking_rows(), min_size=1, max_size=6))
def test_rankings_come_out_as_they_went_in(tmp_path_factory, rows):
    store = Store(str(tmp_path_factory.mktemp("x") / "labels.db"))
    store.add_batch("b")
    store.add_items("b", rows)
    out = list(store.export("rankings"))
    last = {}  # of one person's rankings of the same answers the last one holds
    for row in rows:
        content = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][0]["content"]
        last[row["annotator"], content, tuple(sorted(row["responses"]))] = same_order(row)
    assert sorted(map(same_order, out)) == sorted(last.values())
    for row in out:
        check_row(row, RankingRow, "export")
        assert re.fullmatch("person-[0-9a-f]{12}", row["annotator"])
    again = Store(str(tmp_path_factory.mktemp("y") / "labels.db"))
    again.add_batch("b")
    again.add_items("b", out)
    assert list(again.export("rankings")) == out  # pseudonyms and times as well
    assert again.add_items("b", out)[0] == 0 and list(again.export("rankings")) == out
    again.close()
    store.close()


def test_shapes_that_reward_reads_can_be_imported(store):
    store.add_items("b", [
        {"prompt": "p", "chosen": "good", "rejected": "bad"},
        {"prompt": "q", "chosen": "good", "rejected": "bad", "p_chosen": 0.75},
        {"instruction": "r", "candidates": [{"output": "x", "score": 1}, {"output": "y", "score": 2}]},
        {"prompt": "s", "responses": ["x", "y"], "scores": [3, 3]},
        {"prompt": "t", "responses": ["x", "y"], "ranking": [[1], [0]]},
        {"prompt": "t", "responses": ["x", "y"], "ranking": [[0], [1]]},
    ])  # fmt: skip
    out = list(store.export("rankings"))
    assert [same_order(row) for row in out] == [
        [["good"], ["bad"]], [["good"], ["bad"]], [["y"], ["x"]], [["x", "y"]], [["y"], ["x"]], [["x"], ["y"]],
    ]  # fmt: skip
    assert out[1]["p_better"] == [[None, 0.75], [0.25, None]]
    # nobody named in the file counts as somebody who labelled here
    assert store.progress("b").done == 0 and store.progress("b").total == 5


def test_a_file_speaks_for_nobody_who_has_a_key(store):
    ann = person(store)
    row = {"prompt": "q", "responses": ["x", "y"], "ranking": [[1], [0]], "annotator": "ann"}
    store.add_items("b", [row])
    assert store.history(ann, "b") == [] and [p.name for p in store.people()] == ["Ann", "ann (imported)"]
    x, y = (answer.id for answer in store.item(1).answers)
    store.record(ann, 1, "ranking", [[x, y]])
    old = list(store.export("rankings"))
    store.record(ann, 1, "ranking", [[x], [y]])
    newer = list(store.export("rankings"))
    store.add_items("b", old)  # brought back from a copy: it does not undo the changed mind
    assert list(store.export("rankings")) == newer
    assert store.add_items("b", [row, row]) == (0, 1) and list(store.export("rankings")) == newer
    someone = store.person_named("ann (imported)").id
    store.new_key(someone)  # from now on that person labels here
    store.add_items("b", [{**row, "annotator": "bob"}])
    assert store.progress("b").done == 1
    with pytest.raises(DataError, match="rename it"):
        store.add_items("b", [row])


def test_shares_follow_the_stored_order_of_the_answers(store):
    row = {"prompt": "q", "responses": ["a", "b", "c"], "ranking": [[0], [1], [2]],
           "p_better": [[None, 0.7, 0.9], [0.3, None, 0.6], [0.1, 0.4, None]]}  # fmt: skip
    store.add_items("b", [{"prompt": "q", "responses": ["c", "a", "b"]}, row])
    (out,) = store.export("rankings")
    assert out["responses"] == ["c", "a", "b"] and same_order(out) == [["a"], ["b"], ["c"]]
    assert out["p_better"] == [[None, 0.1, 0.4], [0.9, None, 0.7], [0.6, 0.3, None]]


def test_export_feeds_the_reward_model(store, tmp_path):
    store.add_items("b", [{"prompt": f"q{n}", "responses": ["x", "y", "z"]} for n in range(30)])
    ann, bob = person(store), person(store, "Bob")
    for n in range(1, 31):
        x, y, z = (answer.id for answer in store.item(n).answers)
        store.record(ann, n, "ranking", [[x], [y, z]], flags=["odd"], comment="mail me: ann@example.com", seconds=3)
        store.record(bob, n, "ranking", [[x], [z], [y]])
    store.record(bob, 30, "skip")
    store.record(bob, 29, "all_bad")
    rows = list(store.export("rankings", "b"))
    assert len(rows) == 58 and "ann@example.com" not in json.dumps(rows)
    assert rows[0]["flags"] == ["odd"] and rows[0]["seconds"] == 3
    train, held = rankings(write(tmp_path / "out.jsonl", rows))
    assert len(train) + len(held) == 30 and held
    one = next(row for row in [*train, *held] if row["prompt"] == "q0")
    assert one["ranking"] == [[0], [2], [1]] and one["p_better"][1][2] == 0.25  # a tie is half a vote
    for n in (29, 30):
        assert sum(row["prompt"] == f"q{n - 1}" for row in rows) == 1
    with pytest.raises(DataError, match="no batch 'c'"):
        list(store.export("rankings", "c"))
    with pytest.raises(ConfigError, match="kind='x'"):
        store.export("x")


def test_demonstrations_become_sft_rows(store, tmp_path):
    ann = person(store)
    store.add_demonstration(ann, "Who?", "Write to bob@example.com.", origin={"model": "m"}, edited_from="No.")
    store.add_demonstration(ann, [{"role": "user", "content": "Hi"}], "Hello")
    rows = list(store.export("demonstrations"))
    assert rows[0]["completion"] == "Write to [email]." and rows[0]["origin"] == {"model": "m"}
    assert len(conversations(write(tmp_path / "sft.jsonl", rows), "all", 10, 0)) == 2
    for prompt, answer in (("", "x"), ("x", " "), ([], "x"), ("x", None), (None, "x"), ([{"role": "boss"}], "x")):
        with pytest.raises(DataError):
            store.add_demonstration(ann, prompt, answer)


def test_prompts_need_consent_and_are_kept_once(store):
    ann, bob = person(store), person(store, "Bob")
    long = "Please explain to me in simple words how a steam engine turns heat into motion, with an example."
    assert store.add_prompt(long, ann, consent=False) is None
    first = store.add_prompt(long, ann, consent=True)
    assert first is not None
    for same in (long, long.upper(), long.replace(",", ""), long.replace("an ex", "one ex"), f" {long}\n"):
        assert store.add_prompt(same, bob, consent=True) is None
    assert store.add_prompt("怎样学好中文？", bob, consent=True) is not None
    assert store.add_prompt("怎样学好中文", ann, consent=True) is None
    assert store.add_prompt("怎样学好物理？", bob, consent=True) is not None
    assert store.add_prompt("2+2?", bob, consent=True) is not None and store.add_prompt("2+3?", bob, True) is not None
    store.add_prompt("My mail is ann@example.com, my server 192.168.1.20", ann, consent=True)
    rows = list(store.export("prompts"))
    assert rows[-1]["prompt"] == "My mail is [email], my server [ip]" and rows[-1]["personal"] == ["email", "ip"]
    sides = {row["annotator"]: row["split"] for row in rows}
    assert all(sides[row["annotator"]] == row["split"] == split_of(row["annotator"]) for row in rows)
    store.forget(bob, "")
    assert {row["annotator"] for row in store.export("prompts")} == {rows[0]["annotator"]}
    assert store.add_prompt("怎样学好中文？", ann, consent=True) is not None


def test_one_person_in_ten_is_held_out():
    held = sum(split_of(f"person-{n:012x}") == "heldout" for n in range(3000))
    assert 240 < held < 360


def test_a_vote_is_a_comparison(store):
    ann, bob = person(store), person(store, "Bob")
    answers = [{"text": "x", "model": "base"}, {"text": "y", "model": "sft"}, {"text": "z", "model": "rlhf"}]
    vote = store.add_vote(ann, "my IP is 10.1.2.3", answers, 2, token="v1")
    assert store.add_vote(ann, "my IP is 10.1.2.3", answers, 2, token="v1") == vote
    store.add_vote(bob, "my IP is 10.1.2.3", answers, None)
    rows = list(store.export("rankings", "chat"))
    assert [row["ranking"] for row in rows] == [[[2], [0, 1]], [[0, 1, 2]]]
    assert rows[0]["prompt"] == "my IP is [ip]" and rows[0]["origins"][2] == {"model": "rlhf"}
    assert store.next_item("chat", bob) is None  # another person's chat is not handed out
    for winner in (3, -1, True, "x"):
        with pytest.raises(DataError, match="winner"):
            store.add_vote(ann, "q", answers, winner)
    store.forget(ann, "asked")
    assert [row["ranking"] for row in store.export("rankings", "chat")] == [[[0, 1, 2]]]


def test_agreement_of_a_batch(store):
    store.add_items("b", [{"prompt": f"q{n}", "responses": ["x", "y"]} for n in range(8)])
    assert store.agreement("b")["overlap_items"] == 0
    ann, bob = person(store), person(store, "Bob")
    for n in range(1, 9):
        x, y = (answer.id for answer in store.item(n).answers)
        store.record(ann, n, "ranking", [[y], [x]])
        store.record(ann, n, "ranking", [[x], [y]], seconds=n)  # the changed mind counts
        store.record(bob, n, "ranking", [[x], [y]] if n > 2 else [[y], [x]])
    found = store.agreement("b")
    assert found["agreement"] == 0.75 and found["kendall_tau"] == 0.5 and found["overlap_items"] == 8
    assert {line["annotator"]: line["agreement"] for line in found["per_annotator"]} == {"Ann": 0.75, "Bob": 0.75}
    assert found["people"][0] == {"name": "Ann", "judged": 8, "skipped": 0, "all_bad": 0, "flags": 0, "seconds": 4.5}
    json.dumps(found)


@pytest.mark.parametrize(
    "text, kinds",
    [
        ("write to ann.b+c@mail.example.org now", ["email"]),
        ("邮箱是ann@example.com，谢谢", ["email"]),
        ("邮箱ann@example.com谢谢，服务器10.0.0.1号", ["email", "ip"]),
        ("call +1 (650) 253-0000", ["phone"]),
        ("我的电话是13800138000。", ["phone"]),
        ("call 020 7946 0018 in London", ["phone"]),
        ("card 4111 1111 1111 1111", ["card"]),
        ("卡号4111111111111111", ["card"]),
        ("my server 203.0.113.7:8080", ["ip"]),
        ("at 2001:db8::ff00:42:8329, port 5", ["ip"]),
        ("身份证号11010519491231002X", ["id_number"]),
        ("SSN 536-90-4399", ["id_number"]),
        ("IBAN DE89 3704 0044 0532 0130 00", ["iban"]),
        ("a@b and 12:30:45 and version 1.2.3", []),
        ("card 4111 1111 1111 1112", []),
        ("body id 110105194912310021", []),
        ("300.1.2.3 is no address; pi is 3.14159265358979", []),
        ("In 2024 we had 12345 users and 1,000,000 rows", []),
        ("std::vector<int> x; a::b", []),
        ("print(list[1:2:3])", []),
    ],
)
def test_personal_data_is_found(text, kinds):
    assert [kind for kind, _, _ in find_personal(text)] == kinds
    masked = mask_personal(text)
    assert find_personal(masked) == [] and (masked == text) == (not kinds)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_any_text_can_be_masked(text):
    spans = find_personal(text)
    assert all(0 <= start < end <= len(text) for _, start, end in spans)
    assert spans or mask_personal(text) == text
