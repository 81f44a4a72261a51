"""Continuous batching against one row at a time: random requests, budgets, neighbours, cancellations, threads."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.test_local_engine import make_model, make_tokenizer
from tutelage.core.errors import ConfigError
from tutelage.engine import SamplingParams
from tutelage.engine.local import LocalEngine
from tutelage.engine.rows import Cancelled, Request
from tutelage.engine.sampling import RowParams, sample
from tutelage.engine.session import Session

TOKENIZER = make_tokenizer()
MODEL: Any = make_model("qwen3")
VOCAB, CONTEXT = 320, 64
CLOSE = 1e-4


def engine(tokens: int = 4096, **options: Any) -> LocalEngine:
    """An engine whose budget holds that many tokens."""
    made = LocalEngine(MODEL, TOKENIZER, **options)
    return LocalEngine(MODEL, TOKENIZER, kv_bytes=tokens * made.support.token_bytes, **options)


def held(made: LocalEngine) -> tuple[int, int, int]:
    """(tokens of the budget, cohorts, sessions) that are in use."""
    scheduler = made._scheduler
    return scheduler.used(), len(scheduler.cohorts), len(scheduler.sessions)


@torch.inference_mode()
def alone(request: Request) -> tuple[list[int], list[float], str, list[float]]:
    """The request by itself, a full forward a token: tokens, log-probs, reason, and how clear each choice was."""
    params, ids = request.params, list(request.prompt)
    rows = RowParams.build([params], [request.seed], VOCAB, torch.device("cpu"))
    tokens: list[int] = []
    logprobs: list[float] = []
    clear: list[float] = []
    while len(tokens) < params.max_tokens:
        logits = MODEL(torch.tensor([ids])).logits[:, -1].float()
        seen = torch.zeros(1, VOCAB, dtype=torch.bool)
        seen[0, ids] = True
        token, logprob = sample(logits, rows, torch.tensor([len(tokens)]), seen)
        shifts = [CLOSE * torch.randn_like(logits) for _ in range(3)]
        moved = [int(sample(logits + shift, rows, torch.tensor([len(tokens)]), seen)[0]) for shift in shifts]
        clear.append(float(all(m == int(token) for m in moved)))
        tokens.append(int(token))
        logprobs.append(float(logprob))
        ids.append(int(token))
        if int(token) == TOKENIZER.eos_token_id:
            return tokens, logprobs, "eos", clear
        text = TOKENIZER.decode(tokens, skip_special_tokens=True)
        if int(token) in params.stop_tokens or any(stop in text for stop in params.stop):
            return tokens, logprobs, "stop", clear
    return tokens, logprobs, "length", clear


@st.composite
def parameters(draw: Any) -> SamplingParams:
    some = draw(st.sampled_from(["plain", "greedy", "cut", "penalty", "ends", "biased"]))
    more: dict[str, Any] = {
        "plain": {},
        "greedy": {"temperature": 0},
        "cut": {"top_k": draw(st.integers(0, 8)), "top_p": draw(st.sampled_from([1.0, 0.7])), "min_p": 0.02},
        "penalty": {"repetition_penalty": draw(st.sampled_from([0.8, 1.3])), "temperature": 0.8},
        "ends": {"stop_tokens": tuple(draw(st.lists(st.integers(2, 60), max_size=40))), "stop": ("e", "at t")},
        "biased": {"banned_tokens": (1, 5, 9), "logit_bias": {7: 3.0, 11: -4.0}, "temperature": 1.5},
    }[some]
    return SamplingParams(max_tokens=draw(st.integers(0, 14)), n=draw(st.integers(1, 4)), **more)


@st.composite
def batches(draw: Any) -> list[list[Request]]:
    """Groups of requests; prompts begin with one another often."""
    rng = random.Random(draw(st.integers(0, 2**20)))
    stems = [[rng.randrange(2, VOCAB) for _ in range(rng.choice([0, 3, 17, 34]))] for _ in range(3)]
    groups = []
    for _ in range(draw(st.integers(1, 7))):
        params = draw(parameters())
        prompt = rng.choice(stems) + [rng.randrange(2, VOCAB) for _ in range(rng.randint(1, 8))]
        prompt = prompt if rng.random() < 0.8 or not groups else list(groups[0][0].prompt)
        groups.append([Request(prompt, params, rng.randrange(2**62)) for _ in range(params.n)])
    return groups


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(batches(), st.sampled_from([100, 180, 4096]), st.integers(1, 8), st.sampled_from([8, 24, 2048]))
def test_rows_come_out_as_they_do_alone(
    groups: list[list[Request]], budget: int, max_rows: int, max_tokens: int
) -> None:
    made = engine(budget, max_rows=max_rows, max_tokens=max_tokens)
    groups = [g for g in groups if made._scheduler.never_fits(len(g[0].prompt), len(g), g[0].params.max_tokens) is None]
    found = made.decode(groups)
    for group, results in zip(groups, found, strict=True):
        for request, result in zip(group, results, strict=True):
            tokens, logprobs, reason, clear = alone(request)
            apart = next((i for i, (a, b) in enumerate(zip(tokens, result.tokens)) if a != b), None)
            if apart is not None and not clear[apart]:
                tokens, logprobs, reason = tokens[:apart], logprobs[:apart], result.reason
            assert result.tokens[: len(tokens)] == tokens and result.reason == reason
            assert apart is not None or len(result.tokens) == len(tokens)
            assert result.logprobs[: len(logprobs)] == pytest.approx(logprobs, abs=1e-4)
    assert held(made) == (0, 0, 0)


def test_a_long_queue_stays_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine(300)
    scheduler = made._scheduler
    most, bytes_ = 0, 0
    step = scheduler.step

    def watched() -> None:
        nonlocal most, bytes_
        step()
        most = max(most, scheduler.used())
        pools = [c.pool for c in scheduler.cohorts.values()]
        kept = [k for s in scheduler.sessions for k in s.stored.values()]
        bytes_ = max(
            bytes_,
            sum(x.numel() * 4 for p in pools for table in (p.keys, p.values) for x in table.values())
            + sum(x.untyped_storage().nbytes() for k in kept for pair in k.layers.values() for x in pair),
        )

    monkeypatch.setattr(scheduler, "step", watched)
    rng = random.Random(0)
    stem = [rng.randrange(2, VOCAB) for _ in range(20)]
    tails = [[rng.randrange(2, VOCAB) for _ in range(rng.randint(1, 9))] for _ in range(1500)]
    prompts = [stem * rng.randint(0, 1) + tail for tail in tails]
    params = [SamplingParams(max_tokens=rng.randint(0, 4), seed=i, banned_tokens=(1,)) for i in range(len(prompts))]
    outputs = made.generate(prompts, params)
    assert all(len(o.completions[0].tokens) == p.max_tokens for o, p in zip(outputs, params, strict=True))
    assert 150 < most <= 300
    assert bytes_ <= made.kv_bytes  # what really lies in memory, free places of the pools included
    assert held(made) == (0, 0, 0)


def test_what_never_fits_is_refused_with_the_numbers_and_the_others_are_served() -> None:
    made = engine(60)
    good, bad = SamplingParams(max_tokens=10, seed=1), SamplingParams(max_tokens=30, n=3, seed=1)
    outputs = made.generate(["the cat", "the dog", "one"], [good, bad, good])
    assert [o.error is None for o in outputs] == [True, False, True]
    found = outputs[1].error or ""
    assert "budget holds 60" in found and "3 x 29 new" in found and "bytes" in found and "kv_bytes" in found


def test_kept_keys_that_only_waiting_rows_want_give_way() -> None:
    """A shared beginning of pending rows fills the budget: it is dropped and computed again, not waited for."""
    made = engine(96)
    rng = random.Random(1)
    stems = [[rng.randrange(2, VOCAB) for _ in range(32)] for _ in range(2)]
    prompts = [stem + [rng.randrange(2, VOCAB)] for stem in stems for _ in range(6)]
    params = SamplingParams(max_tokens=20, temperature=0, banned_tokens=(1,))
    found = made.generate(prompts, params)
    assert [o.completions[0].tokens for o in found] == [
        o.completions[0].tokens for o in engine().generate(prompts, params)
    ]
    assert held(made) == (0, 0, 0)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**20))
def test_cancelled_sessions_leave_nothing_behind(seed: int) -> None:
    rng = random.Random(seed)
    made = engine(200)
    scheduler = made._scheduler
    stem = [rng.randrange(2, VOCAB) for _ in range(18)]
    params = SamplingParams(max_tokens=20, banned_tokens=(1,))
    sessions = []
    for _ in range(3):
        groups = [[Request([*stem, rng.randrange(2, VOCAB)], params, rng.randrange(2**40))] * 2 for _ in range(4)]
        sessions.append(Session(groups))
    scheduler.sessions = list(sessions)
    cancelled = sessions[:2]
    with torch.inference_mode():
        at = [rng.randrange(30) for _ in cancelled]
        for step in range(400):
            for session, when in zip(cancelled, at):
                if step == when:
                    session.cancelled.set()
            scheduler._settle()
            if not scheduler.sessions:
                break
            scheduler.step()
    assert held(made) == (0, 0, 0) and sessions[2].left == 0
    for results in sessions[2].results:
        assert all(r is not None and len(r.tokens) == 20 for r in results)


def test_threads_share_the_engine() -> None:
    made = engine(400)
    prompts = ["the cat", "one two", "do you like tea? yes, I like", "the dog ran away and the dog ran"]
    params = [SamplingParams(max_tokens=12, n=2, seed=i) for i in range(4)]
    expected = [[c.tokens for c in engine().generate([p], [q])[0].completions] for p, q in zip(prompts, params)]
    scores = [s.logprob for s in engine().score([(p, " the mat") for p in prompts])]
    MODEL.train()
    failures: list[Any] = []

    def work(number: int) -> None:
        rng = random.Random(number)
        try:
            for _ in range(6):
                i, what = rng.randrange(4), rng.random()
                if what < 0.5:
                    found = [c.tokens for c in made.generate([prompts[i]], [params[i]])[0].completions]
                    assert found == expected[i]
                elif what < 0.75:
                    assert made.score([(prompts[i], " the mat")])[0].logprob == pytest.approx(scores[i], abs=1e-4)
                else:
                    reader = made.stream(prompts[i], params[i])
                    next(reader)
                    reader.close()  # goes away in the middle
        except BaseException as problem:
            failures.append(problem)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures and not any(t.is_alive() for t in threads)
    assert held(made) == (0, 0, 0)
    assert MODEL.training and MODEL.config._attn_implementation == "eager"
    MODEL.eval()


def test_a_callback_that_raises_ends_its_own_row_alone() -> None:
    made = engine()
    params = SamplingParams(max_tokens=6, seed=1, banned_tokens=(1,))

    def angry(*_: object) -> None:
        raise KeyError("reader")

    with pytest.raises(KeyError, match="reader"):
        made.complete(Request([5, 6], params, 1, angry))
    good, bad = made.decode([[Request([5, 6], params, 1)], [Request([5, 7], params, 2, angry)]])
    assert len(good[0].tokens) == 6 and good[0].error is None
    assert len(bad[0].tokens) == 1 and isinstance(bad[0].error, KeyError)
    assert held(made) == (0, 0, 0)


def test_an_error_of_a_step_is_told_to_every_session_and_the_engine_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine()
    scheduler = made._scheduler
    step, count = scheduler.step, 0

    def failing() -> None:
        nonlocal count
        count += 1
        if count == 5:
            raise MemoryError("no room")
        step()

    monkeypatch.setattr(scheduler, "step", failing)
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(made.generate(["the cat"], SamplingParams(max_tokens=40, banned_tokens=(1,), seed=1)))
        except MemoryError as problem:
            found.append(problem)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 3 and any(isinstance(f, MemoryError) for f in found)
    assert made.generate(["the cat"], SamplingParams(max_tokens=3, seed=1))[0].error is None
    assert held(made) == (0, 0, 0)


def test_cancelled_before_it_begins() -> None:
    made, gone = engine(), threading.Event()
    gone.set()
    with pytest.raises(Cancelled):
        made.complete(Request([5, 6], SamplingParams(max_tokens=6), 1), gone)
    assert held(made) == (0, 0, 0)


def test_bad_parameters_are_named() -> None:
    nan = float("nan")
    cases = (
        ("temperature", nan), ("temperature", -1), ("temperature", float("inf")), ("top_p", 0), ("top_p", nan),
        ("min_p", 2), ("n", 0), ("stop", ("",)), ("repetition_penalty", nan), ("max_tokens", -1),
    )  # fmt: skip
    for name, value in cases:
        with pytest.raises(ConfigError, match=name):
            SamplingParams(**{name: value})
    made = engine()
    prompts: list[Any] = ["the cat", "", [5] * 64, [5, 999], "one", "two"]
    banned = ((), (), (), (), (VOCAB,), tuple(range(VOCAB)))
    params = [SamplingParams(max_tokens=4, seed=1, banned_tokens=tokens) for tokens in banned]
    outputs = made.generate(prompts, params)
    assert outputs[0].error is None and len(outputs[0].completions[0].tokens) > 0
    for output, words in zip(outputs[1:], ("empty", "context is 64", "outside 0..319", "outside 0..319", "banned")):
        assert output.error and words in output.error and not output.completions


def test_training_goes_on_between_generations() -> None:
    """Live weights: what is sampled follows each step; no tensor of the engine's reaches autograd."""
    model: Any = make_model("llama").train()
    made = LocalEngine(model, TOKENIZER)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    ids = torch.tensor([made.encode("the cat sat on the mat")])
    params = SamplingParams(max_tokens=8, temperature=0, banned_tokens=(1,))
    seen = set()
    for _ in range(3):
        tokens = made.generate(["the cat"], params)[0].completions[0].tokens
        with torch.no_grad():
            model.eval()
            whole = model.generate(
                torch.tensor([made.encode("the cat")]), max_new_tokens=8, do_sample=False, bad_words_ids=[[1]]
            )
            model.train()
        assert list(tokens) == whole[0, -8:].tolist()
        seen.add(tokens)
        assert model.training
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert len(seen) > 1
