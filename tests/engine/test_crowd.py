"""Random requests crowded into a small budget against each in an engine of its own, whatever was sampled."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.tiny_families import VOCAB, Numbers, build
from tutelage.engine import Completion, SamplingParams
from tutelage.engine.local import LocalEngine
from tutelage.engine.rows import Request
from tutelage.engine.sampling import RowParams, sample

CPU = torch.device("cpu")
HEADS = [[], [5, 6, 7], list(range(20, 40)), list(range(20, 55)), [*range(20, 40), *range(60, 80)]]


@functools.cache
def model(name: str) -> Any:
    """Sharp enough for variety, not so sharp that every sampled token is the best."""
    return build(name, sharp=2.0)


def storages(thing: Any) -> dict[int, int]:
    """Bytes of every tensor's storage in an object's fields, lists and tables; a view counts with what it keeps."""
    if isinstance(thing, torch.Tensor):
        return {thing.untyped_storage().data_ptr(): thing.untyped_storage().nbytes()}
    inside: Any = thing.values() if isinstance(thing, dict) else thing
    if not isinstance(thing, dict | list | tuple):
        inside = vars(thing).values() if hasattr(thing, "__dict__") else ()
    return {k: v for part in inside for k, v in storages(part).items()}


def held(engine: LocalEngine) -> int:
    """Bytes of keys and values that are really there, whatever the scheduler believes."""
    scheduler = engine._scheduler
    kept = [[c.pool for c in scheduler.cohorts.values()], [list(s.stored.values()) for s in scheduler.sessions]]
    stacks = [stack.layers for stack, _ in scheduler._shared._stacks.values()]
    return sum(storages([kept, stacks]).values())


@contextmanager
def watched(engine: LocalEngine) -> Iterator[list[int]]:
    """Within: the bytes held after every forward, which must stay within the budget."""
    seen: list[int] = []
    hook = engine.model.register_forward_hook(lambda *_: seen.append(held(engine)))
    try:
        yield seen
    finally:
        hook.remove()
    assert all(size <= engine.kv_bytes for size in seen)


@st.composite
def requests(draw: st.DrawFn) -> tuple[list[int], SamplingParams]:
    ids = draw(st.sampled_from(HEADS)) + draw(st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=6))
    cut = draw(st.integers(0, 8))
    tokens = st.integers(0, VOCAB - 1)
    return ids[: max(1, len(ids) - cut)], SamplingParams(
        max_tokens=draw(st.sampled_from([0, 1, 2, 7, 13])),
        temperature=draw(st.sampled_from([0.0, 0.3, 1.0, 1.7])),
        top_k=draw(st.sampled_from([0, 0, 1, 5])),
        top_p=draw(st.sampled_from([1.0, 1.0, 0.4, 0.9])),
        min_p=draw(st.sampled_from([0.0, 0.0, 0.1])),
        n=draw(st.sampled_from([1, 1, 1, 2, 4])),
        stop=tuple(draw(st.lists(st.sampled_from(["7 4", "3", "1 5", " 90", "zz"]), max_size=2))),
        stop_tokens=tuple(draw(st.lists(tokens, max_size=2))),
        banned_tokens=tuple(draw(st.lists(tokens, max_size=3))),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 1.4])),
        logit_bias=draw(st.none() | st.dictionaries(tokens, st.floats(-3, 3, width=32), max_size=2)),
        seed=draw(st.integers(-5, 5)),
        logprobs=draw(st.sampled_from([None, None, 2])),
    )


def asked_rows(engine: LocalEngine, ids: list[int], params: SamplingParams) -> list[Request]:
    """The requests that the engine makes of a prompt, with their seeds."""
    kept: list[Request] = []
    decode = engine.decode
    engine.decode = lambda groups, *rest: kept.extend(groups[0]) or decode(groups, *rest)  # type: ignore
    try:
        engine.generate([ids], [params])
    finally:
        del engine.decode
    return kept


def undecided(made: Any, request: Request, a: Completion, b: Completion) -> bool:
    """Whether a and b part at a choice that a change of 1e-4 in the logits decides."""
    at = next(i for i, pair in enumerate(zip(a.tokens, b.tokens)) if pair[0] != pair[1])
    ids = [*request.prompt, *a.tokens[:at]]
    with torch.no_grad():
        logits = made(torch.tensor([ids])).logits[0, -1].float()
    noisy = logits + (torch.rand(256, len(logits), generator=torch.Generator().manual_seed(0)) - 0.5) * 2e-4
    rows = RowParams.build([request.params] * 256, [request.seed] * 256, len(logits), CPU)
    seen = torch.zeros(256, len(logits), dtype=torch.bool)
    seen[:, ids] = True
    return {a.tokens[at], b.tokens[at]} <= set(sample(noisy, rows, at, seen)[0].tolist())


def check_rules(made: Completion, params: SamplingParams) -> None:
    """What must hold of any completion, whatever was sampled."""
    assert not set(made.tokens) & set(params.banned_tokens)
    assert len(made.tokens) <= params.max_tokens and len(made.logprobs) == len(made.tokens)
    assert not any(stop in made.text for stop in params.stop)
    ends = {1, *params.stop_tokens}
    assert not ends & set(made.tokens[:-1])
    if made.finish_reason == "length":
        assert len(made.tokens) == params.max_tokens and not (set(made.tokens) & ends)
    elif made.finish_reason == "eos":
        assert made.tokens[-1] == 1
    else:
        whole = Numbers().decode(list(made.tokens))
        assert made.tokens[-1] in params.stop_tokens or any(stop in whole for stop in params.stop)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    asked=st.lists(requests(), min_size=1, max_size=10), tokens=st.sampled_from([90, 150, 600]),
    max_rows=st.integers(1, 9), max_tokens=st.sampled_from([1, 24, 2048]),
)  # fmt: skip
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_a_crowd_equals_each_alone(family: str, asked: Any, tokens: int, max_rows: int, max_tokens: int) -> None:
    made = model(family)
    free = LocalEngine(made, Numbers())
    kv_bytes = tokens * free.support.token_bytes
    tight = LocalEngine(made, Numbers(), kv_bytes=kv_bytes, max_rows=max_rows, max_tokens=max_tokens)
    with watched(tight):
        crowd = tight.generate([ids for ids, _ in asked], [params for _, params in asked])
    assert held(tight) == tight._scheduler.used() == 0
    for (ids, params), output in zip(asked, crowd, strict=True):
        if tight._scheduler.never_fits(len(ids), params.n, params.max_tokens):
            assert f"the budget holds {tokens}" in (output.error or "")
            continue
        single = free.generate([ids], [params])[0]
        assert output.error is None and single.error is None and len(output.completions) == params.n
        for number, (a, b) in enumerate(zip(output.completions, single.completions, strict=True)):
            same = [x == y for x, y in zip(a.tokens, b.tokens)]
            shared = same.index(False) if False in same else len(same)
            assert a.logprobs[:shared] == pytest.approx(b.logprobs[:shared], abs=1e-4)
            if False in same:
                assert undecided(made, asked_rows(free, ids, params)[number], a, b)
            else:
                assert (a.tokens, a.finish_reason, a.text) == (b.tokens, b.finish_reason, b.text)
                assert (a.top_logprobs is None) == (params.logprobs is None)
            check_rules(a, params)


def test_a_row_with_a_penalty_may_leave_before_others_join() -> None:
    """The last row that needs its seen tokens leaves, and then a row without a penalty joins."""
    engine = LocalEngine(model("llama"), Numbers(), max_rows=2)
    each = [SamplingParams(max_tokens=2, seed=1, repetition_penalty=1.5, banned_tokens=(1,))]
    each += [SamplingParams(max_tokens=n, seed=2, banned_tokens=(1,)) for n in (9, 4, 5)]
    outputs = engine.generate([[5, 6], [7, 8], [9, 10], [11, 12]], each)
    assert [len(o.completions[0].tokens) for o in outputs] == [2, 9, 4, 5]


def test_beginnings_of_many_short_pieces_still_fit() -> None:
    """A prompt whose pieces are all too short to share is copied into every row; if that is too much, it runs alone."""
    prompts = [list(range(10, 10 + 8 * k)) + [2] for k in range(1, 6)]
    params = SamplingParams(max_tokens=4, n=4, seed=1, banned_tokens=(1,))
    free = LocalEngine(model("llama"), Numbers())
    least = next(n for n in range(400) if not _scheduler(n).never_fits(41, 4, 4))
    engine = LocalEngine(model("llama"), Numbers(), kv_bytes=least * free.support.token_bytes)
    with watched(engine) as seen:
        outputs = engine.generate(prompts, params)
    assert seen and not any(o.error for o in outputs)
    expected = free.generate(prompts, params)
    assert [[c.tokens for c in o.completions] for o in outputs] == [[c.tokens for c in o.completions] for o in expected]


def _scheduler(tokens: int) -> Any:
    size = LocalEngine(model("llama"), Numbers()).support.token_bytes
    return LocalEngine(model("llama"), Numbers(), kv_bytes=tokens * size)._scheduler
