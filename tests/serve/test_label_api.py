"""The ranking page's API without a browser: who one is, what one may see, and that a judgement is kept once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.serve.conftest import running
from tests.serve.pages import ROWS, Client, labelling
from tutelage.core.errors import DataError
from tutelage.feedback.active import ActiveSampler
from tutelage.feedback.store import Store
from tutelage.serve import label_api


@pytest.fixture
def served(tmp_path):
    with labelling(tmp_path / "labels.db") as (address, store):
        yield address, store


def said(client, asked, kind="ranking", **more):
    groups = [[answer["id"]] for answer in asked["answers"]] if kind == "ranking" else []
    return {"item": asked["id"], "person": client.person["id"], "kind": kind, "groups": groups, "token": "t1", **more}


def judgements(store, person):
    return store.history(person["id"], "colours")


def test_nobody_ranks_without_a_name(served):
    stranger = Client(served[0])
    assert stranger("/session") == (200, {"person": None, "join": True})
    for path in ("state", "next", "history", "report"):
        status, found = stranger(f"/label/api/{path}")
        assert status == 401 and "key" in found["error"]["message"]
    assert stranger("/label/api/judgements", {"item": 1, "person": 1, "kind": "skip", "token": "t"})[0] == 401


def test_a_name_that_exists_needs_its_key(served):
    ann, other = Client(served[0]), Client(served[0])
    key = ann.join("Ann")["key"]
    assert "HttpOnly" in ann.flags and "samesite=strict" in ann.flags.lower()
    for name in ("Ann", "ann", " Ａnn "):
        status, found = other("/session", {"name": name})
        assert status in (400, 409) and "Ann"[1:] in found["error"]["message"]
    assert other("/session")[1]["person"] is None
    assert other("/session", {"key": key + "x"})[0] == 403
    assert other("/session", {"key": key})[1]["person"]["name"] == "Ann"
    assert other("/session", {"key": key, "name": "Bo"})[0] == 400
    assert other("/session", method="DELETE")[0] == 200


def test_a_cookie_records_under_its_own_name_alone(served):
    ann, bo = Client(served[0]), Client(served[0])
    ann.join("Ann"), bo.join("Bo")
    item = bo("/label/api/next")[1]["item"]
    status, found = bo("/label/api/judgements", said(ann, item))
    assert status == 403 and "Bo" in found["error"]["message"]
    assert bo("/label/api/judgements", {**said(bo, item), "annotator": "Ann"})[0] == 400
    bo.cookie = "tutelage_key=guess"
    assert bo("/label/api/judgements", said(ann, item))[0] == 401
    assert not judgements(served[1], ann.person) and not judgements(served[1], bo.person)


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}])
def test_a_page_of_another_site_can_write_nothing(served, headers):
    ann = Client(served[0])
    ann.join("Ann")
    item = ann("/label/api/next")[1]["item"]
    assert ann("/label/api/judgements", said(ann, item), **headers)[0] == 403
    assert ann("/session", {"name": "Bo"}, **headers)[0] == 403
    assert not judgements(served[1], ann.person)


def test_a_submission_sent_twice_is_one_row_and_a_changed_mind_another(served):
    ann = Client(served[0])
    ann.join("Ann")
    item = ann("/label/api/next")[1]["item"]
    first = ann("/label/api/judgements", said(ann, item, seconds=4.5))[1]
    again = ann("/label/api/judgements", said(ann, item, seconds=9))[1]
    assert again["id"] == first["id"] and again["seconds"] == 4.5
    better = said(ann, item, groups=[[answer["id"] for answer in item["answers"]]], token="t2", flags=["unclear"])
    changed = ann("/label/api/judgements", better)[1]
    assert changed["replaces"] == first["id"]
    (current,) = judgements(served[1], ann.person)
    assert current.id == changed["id"] and current.flags == ("unclear",)
    mine = ann(f"/label/api/items/{item['id']}")[1]
    assert mine["answers"] == item["answers"]  # in the same order as before
    assert [sorted(group) for group in mine["mine"]["groups"]] == [sorted(better["groups"][0])]


def test_what_is_wrong_is_said_and_changes_nothing(served):
    ann = Client(served[0])
    ann.join("Ann")
    item = ann("/label/api/next")[1]["item"]
    ids = [answer["id"] for answer in item["answers"]]
    wrong = [
        {"groups": [[ids[0]]]}, {"groups": [[i] for i in (*ids, ids[0])]}, {"groups": [[True]]}, {"groups": "all"},
        {"kind": "best"}, {"seconds": -1}, {"seconds": "NaN"}, {"token": ""}, {"flags": ["x" * 200]}, {"item": 0},
        {"item": 1 << 70}, {"comment": "x" * 30_000},
    ]  # fmt: skip
    for change in wrong:
        status, found = ann("/label/api/judgements", said(ann, item, **change))
        assert status == 400 and found["error"]["message"], change
    assert ann("/label/api/judgements", {**said(ann, item), "item": 999})[0] == 400
    assert ann("/label/api/items/1")[0] == 404  # not judged yet
    assert ann("/label/api/state?batch=other")[0] == 404
    assert not judgements(served[1], ann.person)


def test_the_order_shown_is_random_per_person_fixed_and_recorded(served):
    address, store = served
    orders = []
    for name in "abcdefgh":
        client = Client(address)
        client.join(name)
        item = client("/label/api/next")[1]["item"]
        shown = [answer["id"] for answer in item["answers"]]
        assert [answer["id"] for answer in client("/label/api/next")[1]["item"]["answers"]] == shown
        assert set(item) == {"id", "prompt", "answers"} and set(item["answers"][0]) == {"id", "text"}  # no origin
        client("/label/api/judgements", said(client, item))
        orders.append(tuple(shown))
    assert len(set(orders)) > 2 and all(sorted(order) == sorted(orders[0]) for order in orders)
    import sqlite3

    rows = sqlite3.connect(store.url).execute("select shown from judgements").fetchall()
    assert [tuple(int(i) for i in row[0].strip("[]").split(",")) for row in rows] == orders


def test_an_item_goes_to_the_wished_number_of_people(tmp_path):
    with labelling(tmp_path / "labels.db", per_item=2, overlap=0.0) as (address, store):
        people = [Client(address) for _ in range(4)]
        for number, client in enumerate(people):
            client.join(f"p{number}")

        def work(client):
            while client.rank():
                pass

        with ThreadPoolExecutor() as at_once:
            list(at_once.map(work, people))
        done = store.progress("colours")
        assert (done.done, done.total) == (len(ROWS), len(ROWS))
        assert sum(len(judgements(store, client.person)) for client in people) == 2 * len(ROWS)


def test_agreement_is_told_without_other_peoples_names(served, monkeypatch):
    ann, bo = Client(served[0]), Client(served[0])
    ann.join("Ann Smith"), bo.join("Bo Jones")
    assert ann("/label/api/report")[1]["agreement"]["comparisons"] == 0
    for client in (ann, bo):
        while client.rank(lambda text: (len(text), text)):
            pass
    monkeypatch.setattr(label_api, "REPORT_SECONDS", 0.0)
    found = ann("/label/api/report")[1]
    assert found["agreement"]["agreement"] == 1.0 and found["agreement"]["overlap_items"] == len(ROWS)
    assert [line["you"] for line in found["agreement"]["people"]].count(True) == 1
    assert "Jones" not in str(found) and len(found["agreement"]["per_annotator"]) == 2


def test_an_ideal_answer_becomes_a_row_for_sft(served):
    ann = Client(served[0])
    ann.join("Ann")
    item = ann("/label/api/next")[1]["item"]
    source = item["answers"][1]
    body = {"item": item["id"], "answer": "sure! max has it.", "edited_from": source["id"]}
    assert ann("/label/api/demonstrations", body)[0] == 200
    assert ann("/label/api/demonstrations", {**body, "edited_from": 10**6})[0] == 400
    assert ann("/label/api/demonstrations", {**body, "answer": " "})[0] == 400
    (row,) = served[1].export("demonstrations")
    assert row["completion"] == "sure! max has it." and row["prompt"] == ROWS[0]["prompt"]


def test_chat_votes_and_other_batches_stay_out_of_sight(tmp_path):
    store = Store(str(tmp_path / "labels.db"))
    key = store.add_person("Ann")
    vote = store.add_vote(1, "my private question", [{"text": "a"}, {"text": "b"}], 0)
    store.add_batch("other")
    store.add_items("other", ROWS[:1])
    with running({}, store=store) as server:
        ann = Client(server.url)
        ann("/session", {"key": key})
        assert ann("/label/api/state")[1]["batches"] == ["other"]
        assert ann(f"/label/api/items/{vote.item}")[0] == 404
        assert ann("/label/api/next?batch=chat")[0] == 404
        assert ann("/label/api/demonstrations", {"item": vote.item, "answer": "x"})[0] == 404


def test_beyond_localhost_nobody_joins_without_a_key(tmp_path):
    store = Store(str(tmp_path / "labels.db"))
    store.add_batch("colours")
    store.add_items("colours", ROWS)
    key = store.add_person("Ann")
    with running({}, store=store, local=False) as server:
        client = Client(server.url)
        assert client("/session")[1] == {"person": None, "join": False}
        assert client("/session", {"name": "Bo"})[0] == 403
        assert client("/session", {"key": key})[0] == 200
        assert client("/label/api/next")[1]["item"]


class Engine:
    """Answers "a 0", "a 1" ... to each prompt; waits for `go` before each call."""

    def __init__(self):
        self.go, self.asked = threading.Event(), []

    def generate(self, prompts, params):
        from tutelage.engine import Completion, Output

        assert self.go.wait(30)
        self.asked += prompts

        def text(prompt, i):
            return "one" if prompt[-1]["content"] == "same" else f"{prompt[-1]['content']} {i}"

        made = [[Completion(text(p, i), (), (), "stop") for i in range(params.n)] for p in prompts]
        return [Output((), tuple(completions)) for completions in made]


def test_answers_are_sampled_while_people_rank_the_undecided_first(tmp_path):
    def reward(prompts, completions, **columns):
        return [columns["gap"][i] * int(text.split()[-1]) for i, text in enumerate(completions)]

    rows = [{"prompt": f"q{i}", "gap": gap} for i, gap in enumerate((9.0, 0.1, 3.0, 1.0))]
    rows.append({"prompt": "same", "gap": 1})
    store, engine = Store(str(tmp_path / "labels.db")), Engine()
    store.add_batch("colours", overlap=1.0)
    sampler = ActiveSampler(store, "colours", engine, rows, reward=reward, responses=2, origin={"model": "runs/sft"})
    sampler.start()
    with running({}, store=store) as server:
        server.app.state.sampling = sampler
        ann = Client(server.url)
        ann.join("Ann")
        found = ann("/label/api/next")[1]
        assert found["item"] is None and found["sampling"] == {"done": 0, "total": 5, "ended": False, "error": None}
        engine.go.set()
        sampler._thread.join(30)
        assert sampler.state() == {"done": 5, "total": 5, "ended": True, "error": None} and sampler.alike == 1
        order = []
        while ann.rank():
            order.append(store.item(store.history(ann.person["id"], "colours", 1)[0].item))
    assert [item.prompt for item in order] == ["q1", "q3", "q2", "q0"]
    assert order[0].answers[0].origin == {"model": "runs/sft"} and order[0].columns["gap"] == 0.1
    again = ActiveSampler(store, "colours", engine, rows, responses=2)
    assert again.state()["done"] == 4 and [row["prompt"] for _, row in again.rows] == ["same"]


def test_a_sampler_that_fails_says_why_and_keeps_what_it_added(tmp_path):
    def reward(prompts, completions, **columns):
        if "q3" in prompts[0]:
            raise ValueError("no score")
        return list(range(len(completions)))

    store, engine = Store(str(tmp_path / "labels.db")), Engine()
    engine.go.set()
    store.add_batch("colours")
    rows = [{"prompt": f"q{i}"} for i in range(5)]
    sampler = ActiveSampler(store, "colours", engine, rows, reward=reward, responses=3)
    sampler.start()
    sampler._thread.join(30)
    state = sampler.state()
    assert state["ended"] and "no score" in state["error"] and state["done"] == 3
    assert store.progress("colours").total == 3
    sampler.stop()


def test_uncertainty_is_the_mean_entropy_of_the_pairs():
    from math import exp, log2

    from tutelage.feedback.active import uncertainty

    def entropy(d):
        p = 1 / (1 + exp(-d))
        return -p * log2(p) - (1 - p) * log2(1 - p)

    assert uncertainty([2.0, 2.0, 2.0]) == pytest.approx(1.0)
    assert uncertainty([0.0, 1.5, -0.3]) == pytest.approx((entropy(1.5) + entropy(0.3) + entropy(1.8)) / 3)
    assert uncertainty([0.0, 5000.0]) == 0.0
    with pytest.raises(DataError, match="at least 2"):
        uncertainty([1.0])
