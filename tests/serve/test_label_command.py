"""`tutelage label DATA`: what goes into the store, where the store is, and that nothing in it is lost."""

import json
import re
import signal
import socket

import pytest

from tests.serve.pages import Client
from tutelage.core.config import build
from tutelage.core.errors import ConfigError, DataError
from tutelage.feedback.store import Store
from tutelage.serve.label import LabelConfig, label, prepare

ROWS = [{"prompt": f"question {i}", "responses": ["yes", "no", "perhaps"]} for i in range(20)]


def written(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def made(data, **values):
    return prepare(str(data), build(LabelConfig, values))


def test_the_store_stands_beside_the_data_and_is_gone_on_with(tmp_path):
    data = written(tmp_path / "answers.jsonl")
    guide = tmp_path / "guide.md"
    guide.write_text("be fair", encoding="utf-8")
    store, batch, sampler = made(data, per_item=3, guidelines=str(guide))
    assert (tmp_path / "answers.labels.db").is_file() and batch == "answers" and sampler is None
    key = store.add_person("Ann")
    ann = store.person_of(key)
    item = store.next_item(batch, ann.id)
    store.record(ann.id, item.id, "ranking", [[answer.id] for answer in item.answers])
    written(tmp_path / "answers.jsonl", [*ROWS, {"prompt": "new", "responses": ["a", "b"]}])
    store, _, _ = made(data, overlap=0.5)  # what is not given stays
    (info,) = store.batches()
    assert (info.items, info.per_item, info.overlap, info.guidelines) == (21, 3, 0.5, "be fair")
    assert len(store.history(ann.id, batch)) == 1
    store, batch, _ = made(tmp_path / "answers.labels.db")
    assert batch is None and store.progress("answers").total == 21
    assert made(tmp_path / "answers.labels.db", batch="answers")[1] == "answers"
    with pytest.raises(DataError, match="there are: answers"):
        made(tmp_path / "answers.labels.db", batch="other")


def test_a_run_of_rank_is_ranked_again_with_or_without_its_rankings(chain):
    store, batch, _ = made(chain / "rank", store=str(chain / "again.db"))
    rows = (chain / "rank/rankings.jsonl").read_text(encoding="utf-8").splitlines()
    assert batch == "rank" and store.progress(batch).total == len(rows) and not list(store.export("rankings"))
    assert store.item(1).columns["item"]  # the gold judge's column comes along
    store, _, _ = made(chain / "rank", store=str(chain / "again.db"), keep_rankings=True, per_item=2)
    kept = list(store.export("rankings"))
    ann = store.person_of(store.add_person("Ann"))
    assert len(kept) == len(rows) and store.progress(batch, ann.id).left_for_me == len(rows)
    assert kept[0]["ranking"] == json.loads(rows[0])["ranking"]


def test_what_is_wrong_is_said_and_no_store_is_made(tmp_path):
    prompts = written(tmp_path / "prompts.jsonl", [{"prompt": "a"}])
    broken = written(tmp_path / "broken.jsonl", [ROWS[0], {"prompt": "x", "responses": ["one"]}])
    good = written(tmp_path / "good.jsonl")
    wrong = [
        (prompts, {}, DataError, r"prompts.jsonl:1: .*model=RUN"),
        (broken, {}, DataError, r"broken.jsonl:2"),
        (good, {"guidelines": str(tmp_path / "no.md")}, ConfigError, "no.md"),
        (good, {"guideline": "x"}, ConfigError, "did you mean 'guidelines'"),
        (good, {"per_item": 0}, ConfigError, "per_item"),
        ("schoolroom:demo", {"store": str(tmp_path / "a.db")}, ConfigError, "model=RUN"),
        (str(tmp_path / "none.jsonl"), {}, DataError, "none.jsonl"),
        (str(tmp_path / "none.db"), {}, DataError, "none.db"),
        (str(tmp_path / "a.db"), {"store": "b.db"}, ConfigError, "b.db"),
    ]
    for data, values, kind, words in wrong:
        with pytest.raises(kind, match=words):
            made(data, **values)
    assert not list(tmp_path.glob("*.db"))
    store, batch, _ = made(broken, on_bad_row="skip")
    assert store.progress(batch).total == 1
    with pytest.raises(ConfigError, match="expected one file"):
        label([], {})


def test_others_reach_it_only_where_people_have_keys(tmp_path):
    data = written(tmp_path / "answers.jsonl")
    with pytest.raises(ConfigError, match="tutelage label key .*answers.labels.db"):
        label([data], {"host": "0.0.0.0", "port": 0})


def test_the_command_serves_until_it_is_stopped(command, tmp_path):
    written(tmp_path / "answers.jsonl")
    process = command("label", "answers.jsonl", "port=0", "per_item=2")
    process.says("rank at http")
    address = re.search(r"rank at (http://127.0.0.1:\d+)/label", process.text())[1]
    ann = Client(address)
    ann.join("Ann")
    for _ in range(5):
        assert ann.rank()
    process.send(signal.SIGTERM)
    assert process.wait() == 0 and "tutelage label export answers.labels.db" in process.text()
    store = Store(str(tmp_path / "answers.labels.db"))
    assert len(store.history(ann.person["id"], "answers")) == 5
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        taken = command("label", "answers.jsonl", f"port={port}")
        assert taken.wait() == 1 and f"port={port}" in taken.text() and "Traceback" not in taken.text()


def test_answers_are_sampled_from_a_model(command, chain, tmp_path):
    written(tmp_path / "prompts.jsonl", [{"prompt": f"who has the {thing}?"} for thing in ("map", "hat", "cup", "bag")])
    words = ("label", "prompts.jsonl", f"model={chain / 'sft'}", f"reward={chain / 'reward'}", "max_tokens=8", "port=0")
    process = command(*words)
    process.says("rank at http")
    ann = Client(re.search(r"rank at (http://127.0.0.1:\d+)/label", process.text())[1])
    ann.join("Ann")
    process.until(lambda: ann("/label/api/state")[1]["sampling"]["ended"])
    state = ann("/label/api/state")[1]
    assert state["sampling"] == {"done": 4, "total": 4, "ended": True, "error": None} and state["progress"]["total"] > 1
    process.send(signal.SIGINT)
    assert process.wait() == 0
    store = Store(str(tmp_path / "prompts.labels.db"))
    assert store.item(1).answers[0].origin["model"] == str(chain / "sft")
