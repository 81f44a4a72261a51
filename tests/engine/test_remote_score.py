"""Scoring over HTTP: which of the echoed tokens are the continuation's, whatever a server does to them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from http.server import ThreadingHTTPServer
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from tests.servers import JsonHandler, serving
from tutelage.engine import RemoteEngine, load
from tutelage.engine.echo import text_span


def pieces(text: str) -> list[str]:
    """Words with the blank before them, long ones in parts of four letters."""
    return [part for word in re.findall(r"\s*\S+|\s+$", text) for part in re.findall(r"(?s)\s*\S{1,4}|\s+", word)]


def value(token: str, place: int) -> float:
    return -len(token) - place / 8


class Server(ThreadingHTTPServer):
    """`change(body, tokens, answer)` edits the answer of a good server, or returns (status, words)."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.change: Any = lambda body, answer: None
        self.answer: Any = None
        self.asked: list[dict[str, Any]] = []

    def plain(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["prompt"]
        tokens = pieces(prompt) if isinstance(prompt, str) else [f" {i}" for i in prompt]
        new = ["!"] * body["max_tokens"]
        whole = [*tokens, *new]
        values = [None, *(value(token, i) for i, token in enumerate(whole) if i)]
        return {
            "choices": [
                {
                    "text": "".join(whole),
                    "logprobs": {
                        "tokens": whole,
                        "token_logprobs": values,
                        "top_logprobs": [None, *({t: v} for t, v in zip(whole[1:], values[1:]))],
                        "text_offset": [0, *accumulate(map(len, whole))][:-1],
                    },
                }
            ],
            "usage": {"prompt_tokens": len(tokens), "completion_tokens": len(new)},
        }


class Handler(JsonHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.body()
        self.server.asked.append(body)
        answer = (self.server.answer or self.server.plain)(body)
        status, found = self.server.change(body, answer) or (200, answer)
        self.answer(found, status)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    with serving(made):
        yield made


@pytest.fixture
def engine(server: Server) -> RemoteEngine:
    return RemoteEngine(f"http://127.0.0.1:{server.server_address[1]}/v1", "m", backoff=0.001)


PAIRS = [
    ("the cat sat", " on the mat"),
    ("the cat ", "sat"),  # the blank counts to the continuation
    ("the cat sa", "t on"),  # one token spans both
    ("une pâte", " brisée, très bonne"),
    ("a", " b"),
]


def expected(context: str, continuation: str) -> tuple[float, ...]:
    tokens, at, out = pieces(context + continuation), 0, []
    for i, token in enumerate(tokens):
        if at + len(token) > len(context.rstrip()):
            out.append(value(token, i))
        at += len(token)
    return tuple(out)


def check(engine: RemoteEngine, pairs: Sequence[tuple[str, str]] = PAIRS) -> None:
    for (context, continuation), score in zip(pairs, engine.score(pairs), strict=True):
        assert score.error is None
        assert score.token_logprobs == expected(context, continuation), (context, continuation)
        assert score.logprob == sum(score.token_logprobs) and score.is_greedy


def test_split_by_offsets(server: Server, engine: RemoteEngine) -> None:
    check(engine)
    assert {body["max_tokens"] for body in server.asked} == {0} and len(server.asked) == len(PAIRS)
    assert engine.score([("a", ""), ("", "")])[0].logprob == 0.0 and len(server.asked) == len(PAIRS)


def test_a_server_that_wants_a_token_is_asked_for_one_which_is_dropped(server: Server, engine: RemoteEngine) -> None:
    server.change = lambda body, answer: (400, {"error": "max_tokens"}) if body["max_tokens"] == 0 else None
    check(engine, PAIRS[:1])
    check(engine)
    assert [body["max_tokens"] for body in server.asked] == [0] + [1] * (1 + len(PAIRS))  # asked with 0 only once


def test_a_server_that_samples_although_asked_for_nothing(server: Server, engine: RemoteEngine) -> None:
    server.answer = lambda body: server.plain({**body, "max_tokens": 3})
    check(engine)


def with_bos(body: dict[str, Any], answer: dict[str, Any]) -> None:
    """The bos token is listed, and counted in the offsets."""
    found = answer["choices"][0]["logprobs"]
    found["tokens"].insert(0, "<s>")
    found["token_logprobs"].insert(0, None)
    found["top_logprobs"].insert(0, None)
    found["text_offset"] = [0, *(o + 3 for o in found["text_offset"])]
    found["token_logprobs"][1] = value(found["tokens"][1], 0)
    found["top_logprobs"][1] = {"x": found["token_logprobs"][1]}
    answer["usage"]["prompt_tokens"] += 1


def test_a_bos_token_in_front(server: Server, engine: RemoteEngine) -> None:
    server.change = with_bos
    check(engine)
    check(engine, [("", "the cat")])  # then even an empty context is scored

    def uncounted(body: dict[str, Any], answer: dict[str, Any]) -> None:
        with_bos(body, answer)
        found = answer["choices"][0]["logprobs"]
        found["text_offset"] = [0, *(o - 3 for o in found["text_offset"][1:])]

    server.change = uncounted
    check(engine)


def test_no_offsets_at_all(server: Server, engine: RemoteEngine) -> None:
    server.change = lambda body, answer: answer["choices"][0]["logprobs"].pop("text_offset") and None
    check(engine)


def test_tokens_that_lost_their_blanks_are_counted(server: Server, engine: RemoteEngine) -> None:
    def stripped(body: dict[str, Any], answer: dict[str, Any]) -> None:
        found = answer["choices"][0]["logprobs"]
        found["tokens"] = [token.strip() for token in found["tokens"]]
        found["text_offset"] = [0, *accumulate(map(len, found["tokens"]))][:-1]

    server.change = stripped
    check(engine)
    assert any(body["prompt"] == "the cat sat" for body in server.asked)  # the context alone: how many tokens it has


def test_only_generated_log_probs_are_an_error(server: Server, engine: RemoteEngine) -> None:
    """llama.cpp's server takes echo and ignores it: log-probs of one sampled token, which were taken for scores."""

    def ignores_echo(body: dict[str, Any]) -> dict[str, Any]:
        found = {"tokens": [" mat"], "token_logprobs": [-0.1], "text_offset": [0], "top_logprobs": [{" mat": -0.1}]}
        return {"choices": [{"text": " mat", "logprobs": found}], "usage": {"prompt_tokens": 5}}

    server.answer = ignores_echo
    for score in engine.score([("the cat", " sat"), ("the", " mat"), ([1, 2], [3, 4])]):
        assert math.isnan(score.logprob) and "no log-probs of its prompt (echo" in (score.error or "")


@pytest.mark.parametrize("found", [None, {}, {"tokens": [], "token_logprobs": []}, {"content": []}])
def test_no_log_probs_are_an_error(server: Server, engine: RemoteEngine, found: Any) -> None:
    server.answer = lambda body: {"choices": [{"text": "x", "logprobs": found}]}
    assert "echo with logprobs" in (engine.score([("the cat", " sat")])[0].error or "")


def test_refused_echo_and_fewer_log_probs(server: Server, engine: RemoteEngine) -> None:
    server.change = lambda body, answer: (400, {"error": {"message": "Only no echo is supported"}})
    scores = engine.score([("the cat", " sat"), ("a", " b")])
    assert all("Only no echo is supported" in (score.error or "") for score in scores)
    server.change = lambda body, answer: answer["choices"][0]["logprobs"]["token_logprobs"].pop() and None
    assert "log-probs for" in (engine.score([("the cat", " sat")])[0].error or "")
    server.change = lambda body, answer: None
    score = engine.score([("", "the cat")])[0]
    assert "first token; expected a context that is not empty" in (score.error or "")
    assert "two texts or two lists" in (engine.score([("a", [1])])[0].error or "")


def test_first_choices_that_are_not_told_are_not_greedy(server: Server, engine: RemoteEngine) -> None:
    server.change = lambda body, answer: answer["choices"][0]["logprobs"].pop("top_logprobs") and None
    assert not engine.score([("the cat", " sat")])[0].is_greedy
    server.change = lambda body, answer: answer["choices"][0]["logprobs"]["top_logprobs"][-1].update(other=-0.5)
    assert [s.is_greedy for s in engine.score([("the cat", " sat"), ("the cat sat", " on")])] == [False, False]


def test_token_ids(server: Server, engine: RemoteEngine) -> None:
    score = engine.score([([5, 6], [7, 8])])[0]
    assert server.asked[0]["prompt"] == [5, 6, 7, 8] and score.tokens == (7, 8)
    assert score.token_logprobs == (value(" 7", 2), value(" 8", 3))


def test_parts_of_characters() -> None:
    """OpenAI writes a token that is part of a character as bytes; both parts have the character's offset."""
    tokens, offsets = ["le", " ", "bytes:\\xc3", "bytes:\\xa9", "t", "é"], [0, 2, 3, 3, 4, 5]
    assert text_span(tokens, offsets, "le été", "le") == text_span(tokens, offsets, "le été", "le ") == (1, 6)
    assert text_span(tokens, offsets, "le été", "le é") == (4, 6)
    assert text_span([*tokens[:-1], "bytes:\\xc3", "bytes:\\xa9"], [*offsets, 5], "le été", "le ét") == (5, 7)
    assert text_span(["le", " \ufffd", "\ufffd"], [0, 2, 4], "le é", "le") is None


def test_equal_to_the_local_engine(server: Server, engine: RemoteEngine, chain: Path) -> None:
    """A server on a real tokenizer and model: the same numbers as scoring them here."""
    local = load(chain / "sft", device="cpu")

    def real(body: dict[str, Any]) -> dict[str, Any]:
        ids = local.encode(body["prompt"])
        tokens = [local.tokenizer.decode([i]) for i in ids]
        score = local.score([(ids[:1], ids[1:])])[0]
        found = {
            "tokens": tokens,
            "token_logprobs": [None, *score.token_logprobs],
            "text_offset": [0, *accumulate(map(len, tokens))][:-1],
        }
        return {"choices": [{"text": body["prompt"], "logprobs": found}], "usage": {"prompt_tokens": len(ids)}}

    server.answer = real
    pairs = [("sam is in the park.", " where is sam?"), ("where is eva? ", "in the market"), ("tom", " has 12 apples")]
    for ours, theirs in zip(engine.score(pairs), local.score(pairs), strict=True):
        assert ours.error is None and len(ours.token_logprobs) == len(theirs.token_logprobs) > 0
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
