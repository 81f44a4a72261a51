"""/chat/api over HTTP: what is served, fitting, scores, and what people give."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.serve.conftest import Running, post, running
from tutelage.engine import LocalEngine, RemoteEngine
from tutelage.feedback.store import Store
from tutelage.serve.access import COOKIE, Keys

ASKED = [{"role": "user", "content": "one two"}]
ANSWERS = [{"text": t, "origin": {"model": m, "params": {"seed": 1}}} for t, m in (("", "x"), ("b", "y"), ("c", "z"))]


def by_length(prompts: list[Any], completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(str(tmp_path_factory.mktemp("api") / "labels.db"))


@pytest.fixture(scope="module")
def served(engine: LocalEngine, store: Store) -> Iterator[Running]:
    far = RemoteEngine("http://127.0.0.1:9/v1", model="far")
    with running({"base": engine, "tiny": engine, "far": far}, store=store, rewards={"length": by_length}) as one:
        yield one


@pytest.fixture(scope="module")
def cookie(store: Store) -> dict[str, str]:
    return {"Cookie": f"{COOKIE}={store.add_person('ana')}"}


def test_state_tells_what_the_page_may_offer(served: Running, cookie: dict[str, str], engine: LocalEngine) -> None:
    told = httpx2.get(f"{served.url}/chat/api/state").json()
    context = engine.context_length
    assert told["models"] == {
        "base": {"talks": False, "context": context},
        "tiny": {"talks": True, "context": context},
        "far": {"talks": True, "context": None},
    }
    assert told["rewards"] == ["length"] and told["store"] is True and told["person"] is None
    assert httpx2.get(f"{served.url}/chat/api/state", headers=cookie).json()["person"] == {"name": "ana"}


def test_fit_leaves_out_the_oldest_exchanges(served: Running, engine: LocalEngine) -> None:
    head = {"role": "system", "content": "be kind"}
    turns = [{"role": "user" if n % 2 == 0 else "assistant", "content": f"{n} one two three"} for n in range(41)]
    found = post(served, "/chat/api/fit", {"model": "tiny", "messages": [head, *turns], "max_tokens": 9999}).json()
    kept = found["messages"]
    assert kept[0] == head and kept[1:] == turns[-(len(kept) - 1) :] and kept[1]["role"] == "user"
    assert 0 < found["dropped"] == len(turns) + 1 - len(kept)
    assert len(engine.encode(kept)) <= engine.context_length / 2 < len(engine.encode([head, *turns[-len(kept) - 1 :]]))
    whole = post(served, "/chat/api/fit", {"model": "far", "messages": turns, "max_tokens": 9}).json()
    assert whole == {"messages": turns, "dropped": 0}
    long = [{"role": "user", "content": "one " * 2000}]
    refused = post(served, "/chat/api/fit", {"model": "tiny", "messages": long, "max_tokens": 9})
    assert refused.status_code == 400 and "fit beside" in refused.json()["error"]["message"]
    assert post(served, "/chat/api/fit", {"model": "no", "messages": long, "max_tokens": 9}).status_code == 404


def test_reward_scores_every_answer(served: Running) -> None:
    found = post(served, "/chat/api/reward", {"prompt": ASKED, "answers": ["abc", "a"]})
    assert found.json() == {"scores": {"length": [3.0, 1.0]}}


def test_what_people_give_needs_a_person(served: Running, cookie: dict[str, str], store: Store) -> None:
    vote = {"prompt": ASKED, "answers": ANSWERS, "kind": "winner", "winner": 1, "shown": [2, 0, 1], "token": "t1"}
    demonstration = {"prompt": ASKED, "answer": "three", "edited_from": "a"}
    prompt = {"prompt": ASKED, "consent": True}
    for path, body in (("vote", vote), ("demonstration", demonstration), ("prompt", prompt)):
        assert post(served, f"/chat/api/{path}", body).status_code == 401
    first = post(served, "/chat/api/vote", vote, headers=cookie).json()
    assert post(served, "/chat/api/vote", vote, headers=cookie).json() == first  # sent twice, counted once
    row = list(store.export("rankings"))[-1]
    best = [row["responses"][i] for i in row["ranking"][0]]
    assert row["prompt"] == "one two" and best == ["b"] and len(row["ranking"]) == 2
    assert {o["model"] for o in row["origins"]} == {"x", "y", "z"}
    assert post(served, "/chat/api/demonstration", demonstration, headers=cookie).status_code == 200
    assert list(store.export("demonstrations"))[-1]["completion"] == "three"
    assert post(served, "/chat/api/prompt", {**prompt, "consent": False}, headers=cookie).json() == {"kept": False}
    assert list(store.export("prompts")) == []
    assert post(served, "/chat/api/prompt", prompt, headers=cookie).json() == {"kept": True}
    assert post(served, "/chat/api/prompt", prompt, headers=cookie).json() == {"kept": False}  # known already


def test_the_same_text_is_not_better_than_itself(served: Running, cookie: dict[str, str], store: Store) -> None:
    twins = [ANSWERS[1], {**ANSWERS[1], "origin": {"model": "y"}}, ANSWERS[2]]
    body = {"prompt": [{"role": "user", "content": "twins"}], "answers": twins, "kind": "winner", "winner": 1}
    assert post(served, "/chat/api/vote", body, headers=cookie).status_code == 200
    row = next(r for r in store.export("rankings") if r["prompt"] == "twins")
    assert sorted(row["responses"][i] for i in row["ranking"][0]) == ["b", "b"]


@pytest.mark.parametrize(
    "change",
    [
        {"winner": 3}, {"winner": None}, {"kind": "tie"}, {"kind": "best"}, {"shown": [0, 0, 1]},
        {"answers": ANSWERS[:1]}, {"prompt": []}, {"prompt": [{"role": "assistant", "content": "x"}]}, {"more": 1},
        {"seconds": -1},
    ],
)  # fmt: skip
def test_votes_that_are_none_are_refused(served: Running, cookie: dict[str, str], change: dict[str, Any]) -> None:
    vote = {"prompt": ASKED, "answers": ANSWERS, "kind": "winner", "winner": 1}
    assert post(served, "/chat/api/vote", {**vote, **change}, headers=cookie).status_code == 400


def test_a_server_without_a_store_keeps_nothing_and_one_with_keys_asks(engine: LocalEngine, tmp_path: Path) -> None:
    key = Keys.add(tmp_path / "keys.json", "ci")
    with running({"tiny": engine}, keys=Keys(tmp_path / "keys.json")) as one:
        assert httpx2.get(f"{one.url}/chat/api/state").status_code == 401
        known = {"Authorization": f"Bearer {key}"}
        assert httpx2.get(f"{one.url}/chat/api/state", headers=known).json()["store"] is False
        assert post(one, "/chat/api/reward", {"prompt": ASKED, "answers": ["a"]}).status_code == 401
        refused = post(one, "/chat/api/prompt", {"prompt": ASKED, "consent": True}, headers=known)
        assert refused.status_code == 404 and "store=" in refused.json()["error"]["message"]
