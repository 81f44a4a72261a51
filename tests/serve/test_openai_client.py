"""The official OpenAI client against a real server."""

from __future__ import annotations

import concurrent.futures
import math

import openai
import pytest

from tests.serve.conftest import CHAT, Running
from tutelage.engine import LocalEngine, SamplingParams


def test_chat_equals_the_engine(client: openai.OpenAI, engine: LocalEngine) -> None:
    made = client.chat.completions.create(
        model="tiny", messages=CHAT, max_tokens=12, temperature=0.7, seed=5, n=3, logprobs=True, top_logprobs=4
    )
    params = SamplingParams(max_tokens=12, temperature=0.7, seed=5, n=3, logprobs=4)
    expected = engine.generate([CHAT], params)[0]
    assert [c.message.content for c in made.choices] == [c.text for c in expected.completions]
    assert [c.index for c in made.choices] == [0, 1, 2] and made.object == "chat.completion"
    assert all(c.finish_reason in ("stop", "length") and c.message.role == "assistant" for c in made.choices)
    for choice, completion in zip(made.choices, expected.completions):
        told = choice.logprobs.content
        assert [t.logprob for t in told] == pytest.approx(list(completion.logprobs), abs=1e-5)
        assert all(len(t.top_logprobs) == 4 for t in told)
        assert all(t.top_logprobs[0].logprob >= t.top_logprobs[3].logprob for t in told)
        said = b"".join(bytes(t.bytes) for t in told)
        assert said.decode("utf-8", "replace").startswith(choice.message.content.rstrip("\ufffd"))
    count = sum(len(c.tokens) for c in expected.completions)
    assert made.usage.completion_tokens == count and made.usage.prompt_tokens == len(expected.prompt_tokens)
    assert made.usage.total_tokens == count + len(expected.prompt_tokens)


def test_messages_in_parts_and_roles(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "one"}]
    said = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    plain = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one"}]
    both = [
        client.chat.completions.create(model="tiny", messages=m, max_completion_tokens=6, seed=1) for m in (said, plain)
    ]
    assert both[0].choices[0].message.content == both[1].choices[0].message.content
    assert both[0].usage == both[1].usage


@pytest.mark.parametrize("more", [{}, {"n": 3}, {"stop": ["e"]}, {"stop": ["zz", " t"], "n": 2}, {"logprobs": True}])
def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI, more: dict) -> None:
    asked = {"model": "tiny", "messages": CHAT, "max_tokens": 40, "seed": 3, **more}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage == whole.usage and chunks[-1].choices == []
    assert len({c.id for c in chunks}) == 1 and all(c.object == "chat.completion.chunk" for c in chunks)
    for i, choice in enumerate(whole.choices):
        mine = [c for chunk in chunks for c in chunk.choices if c.index == i]
        assert mine[0].delta.role == "assistant"
        assert "".join(c.delta.content or "" for c in mine) == choice.message.content
        assert [c.finish_reason for c in mine if c.finish_reason] == [choice.finish_reason]
        assert mine[-1].finish_reason == choice.finish_reason
        if more.get("logprobs"):
            told = [t for c in mine if c.logprobs for t in c.logprobs.content]
            assert [t.token for t in told] == [t.token for t in choice.logprobs.content]
            assert [t.logprob for t in told] == pytest.approx([t.logprob for t in choice.logprobs.content], abs=1e-4)


def test_streams_come_piece_by_piece(client: openai.OpenAI) -> None:
    chunks = list(client.completions.create(model="tiny", prompt="the", max_tokens=60, seed=1, stream=True))
    assert len([c for c in chunks if c.choices[0].text]) > 10


def test_completions_of_several_prompts(client: openai.OpenAI, engine: LocalEngine) -> None:
    prompts = ["the cat", "one two three", "你好"]
    made = client.completions.create(model="tiny", prompt=prompts, max_tokens=9, seed=2, n=2, temperature=1.3)
    expected = engine.generate(prompts, SamplingParams(max_tokens=9, seed=2, n=2, temperature=1.3))
    assert [c.text for c in made.choices] == [c.text for o in expected for c in o.completions]
    assert [c.index for c in made.choices] == list(range(6)) and made.object == "text_completion"
    ids = [engine.encode(p) for p in prompts]
    again = client.completions.create(model="tiny", prompt=ids, max_tokens=9, seed=2, n=2, temperature=1.3)
    assert [c.text for c in again.choices] == [c.text for c in made.choices]
    one = client.completions.create(model="tiny", prompt=ids[1], max_tokens=9, seed=2, temperature=1.3)
    assert one.choices[0].text == made.choices[2].text
    assert client.completions.create(model="tiny", prompt="the").usage.completion_tokens <= 16


def test_completion_logprobs_and_offsets(client: openai.OpenAI) -> None:
    made = client.completions.create(model="tiny", prompt="the cat", max_tokens=12, seed=2, logprobs=3).choices[0]
    told = made.logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.text_offset) == len(told.top_logprobs)
    assert all(max(top.values()) >= logprob - 1e-6 for top, logprob in zip(told.top_logprobs, told.token_logprobs))
    broken = False  # behind a part of a character it is only known later where the next token begins
    for token, offset in zip(told.tokens, told.text_offset):
        if not token.startswith("bytes:") and not broken and offset < len(made.text):
            assert made.text.startswith(token, offset)
        broken = token.startswith("bytes:")
    none = client.completions.create(model="tiny", prompt="the cat", max_tokens=3, logprobs=0).choices[0].logprobs
    assert none.top_logprobs is None and len(none.tokens) == 3


def test_echo_gives_the_prompt_and_its_scores(client: openai.OpenAI, engine: LocalEngine) -> None:
    prompt = "the cat sat on 你好"
    made = client.completions.create(model="tiny", prompt=prompt, echo=True, max_tokens=0, logprobs=2).choices[0]
    ids = engine.encode(prompt)
    assert made.text == prompt and made.finish_reason == "length"
    assert made.logprobs.token_logprobs[0] is None and made.logprobs.top_logprobs[0] is None
    expected = engine.score([(ids[:1], ids[1:])])[0].token_logprobs
    assert made.logprobs.token_logprobs[1:] == pytest.approx(list(expected), abs=1e-5)
    assert all(len(top) == 2 for top in made.logprobs.top_logprobs[1:])
    asked = {"model": "tiny", "prompt": prompt, "echo": True, "max_tokens": 5, "seed": 1}
    answer = client.completions.create(**asked, logprobs=1)
    more = answer.choices[0]
    assert more.text.startswith(prompt) and len(more.logprobs.tokens) == answer.usage.total_tokens > len(ids)
    plain = client.completions.create(model="tiny", prompt=["one", "two"], echo=True, max_tokens=2, n=2, seed=1)
    assert [c.text[:3] for c in plain.choices] == ["one", "one", "two", "two"]
    chunks = client.completions.create(**asked, stream=True)
    assert "".join(c.choices[0].text for c in chunks if c.choices) == more.text
    by_ids = client.completions.create(model="tiny", prompt=ids, echo=True, max_tokens=0).choices[0]
    assert by_ids.text == prompt


def test_stop_bias_and_extras(client: openai.OpenAI, engine: LocalEngine) -> None:
    first = client.completions.create(model="tiny", prompt="the", max_tokens=30, temperature=0).choices[0]
    piece = first.text[4:7]
    cut = client.completions.create(model="tiny", prompt="the", max_tokens=30, temperature=0, stop=piece).choices[0]
    assert cut.text == first.text[: first.text.index(piece)] and cut.finish_reason == "stop"
    token = engine.encode("cat")[0]
    forced = client.completions.create(model="tiny", prompt="the", max_tokens=3, logit_bias={str(token): 100})
    assert forced.choices[0].text == engine.text_of([token] * 3)
    banned = client.completions.create(
        model="tiny", prompt="the", max_tokens=30, temperature=0, logit_bias={str(engine.encode(first.text)[0]): -100}
    )
    assert banned.choices[0].text != first.text
    extra = {"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.2, "stop_token_ids": [token]}
    client.completions.create(model="tiny", prompt="the", max_tokens=4, extra_body=extra)


def test_models(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "tutelage"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    "asked, param",
    [
        ({"presence_penalty": 0.5}, "presence_penalty"), ({"frequency_penalty": -1.0}, "frequency_penalty"),
        ({"n": 0}, "n"), ({"n": 1000}, "n"), ({"max_tokens": -1}, "max_tokens"), ({"max_tokens": 10**6}, "max_tokens"),
        ({"temperature": -1}, "temperature"), ({"temperature": "hot"}, "temperature"), ({"top_p": 0}, "top_p"),
        ({"logit_bias": {"cat": 1}}, "logit_bias"), ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"messages": []}, "messages"), ({"messages": [{"role": "robot", "content": "x"}]}, "messages"),
        ({"extra_body": {"colour": "red"}}, "colour"), ({"tools": []}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"), ({"stop": ""}, "stop"),
        ({"extra_body": {"top_logprobs": 2}}, "top_logprobs"),
    ],
)  # fmt: skip
def test_refusals_name_the_parameter(client: openai.OpenAI, asked: dict, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": "tiny", "messages": CHAT, **asked})
    assert param in str(caught.value.body["message"]) and caught.value.type == "invalid_request_error"


def test_other_refusals(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=CHAT)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt="one two " * 500)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt=[1, 99999])
    assert "outside" in str(caught.value)
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="tiny", prompt="")


def test_many_clients_share_one_batch(client: openai.OpenAI, server: Running, engine: LocalEngine) -> None:
    """48 streams at once say what each says alone, and run in fewer steps than one after another."""
    steps = 0
    scheduler = engine._scheduler
    step = scheduler.step

    def counted() -> None:
        nonlocal steps
        steps += 1
        step()

    scheduler.step = counted  # type: ignore[method-assign]
    params = SamplingParams(max_tokens=24, temperature=0)
    prompts = [f"one two three four {i}" for i in range(48)]
    try:
        with concurrent.futures.ThreadPoolExecutor(48) as pool:
            made = list(pool.map(lambda p: _streamed(client, p), prompts))
    finally:
        del scheduler.step
    assert steps < 48 * 24 / 4
    for text, output in zip(made, engine.generate(prompts, params), strict=True):
        assert text == output.completions[0].text
    assert server.metric("tutelage_running_rows") == 0 and server.metric("tutelage_generated_tokens_total") > 0


def _streamed(client: openai.OpenAI, prompt: str) -> str:
    chunks = client.completions.create(model="tiny", prompt=prompt, max_tokens=24, temperature=0, stream=True)
    return "".join(c.choices[0].text for c in chunks)


def test_a_model_that_gives_nan_is_an_error_not_an_answer(engine: LocalEngine) -> None:
    from tests.serve.conftest import make_engine, running

    broken = make_engine()
    with running({"broken": broken}) as server:
        broken.support  # noqa: B018  (tried while the weights are whole)
        next(broken.model.parameters()).data.fill_(math.nan)
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
            with pytest.raises(openai.InternalServerError, match="NaN"):
                client.completions.create(model="broken", prompt="one")
            with pytest.raises(openai.APIError, match="NaN"):
                list(client.completions.create(model="broken", prompt="one", stream=True))
