"""Whatever goes wrong with one request is an error of that request: neighbours and other threads get their answers."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig

from tests.engine.test_local_engine import make_model
from tests.engine.test_masked_and_seq2seq import make_masked, make_seq2seq
from tutelage.core.errors import ConfigError, DataError
from tutelage.engine import LocalEngine, SamplingParams, Score

POISON = 77


def bloom() -> Any:
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=320, hidden_size=32, n_layer=2, n_head=2, pad_token_id=0, eos_token_id=1)
    return AutoModelForCausalLM.from_config(config).eval()


class Touchy:
    """A tokenizer whose decoder raises at one token, and whose encoder raises at one word."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, text: str, **more: Any) -> Any:
        if "poison" in text:
            raise KeyError("no such piece")
        return self.inner(text, **more)

    def decode(self, ids: list[int], **more: Any) -> str:
        if POISON in ids:
            raise OverflowError("out of range")
        return str(self.inner.decode(ids, **more))


@pytest.fixture(scope="module", params=["planned", "static", "seq2seq"])
def engine(request: pytest.FixtureRequest, make_tokenizer: Any) -> LocalEngine:
    kinds = {"planned": lambda: make_model("llama"), "static": bloom, "seq2seq": lambda: make_seq2seq("t5")}
    found = LocalEngine(kinds[request.param](), Touchy(make_tokenizer("$A </s>")))
    assert found.support.plans is (request.param == "planned")
    return found


FINE = SamplingParams(max_tokens=8, temperature=0, banned_tokens=(1, 2, POISON), stop=("zzz",))
SICK = SamplingParams(max_tokens=8, temperature=0, logit_bias={POISON: 1e4}, stop=("zzz",))
NO_STOP = SamplingParams(max_tokens=8, temperature=0, logit_bias={POISON: 1e4})


def test_a_decoder_that_raises_ends_its_own_request_alone(engine: LocalEngine) -> None:
    alone = engine.generate(["the cat", "one"], FINE)
    outputs = engine.generate(["the cat", "the dog", "one", "two"], [FINE, SICK, FINE, NO_STOP])
    assert [o.text for o in (outputs[0], outputs[2])] == [o.text for o in alone] and all(o.text for o in alone)
    for sick in (outputs[1], outputs[3]):  # while it is decoded, and when its text is made
        assert sick.error == "OverflowError: out of range" and not sick.completions and sick.prompt_tokens
    before = threading.active_count()
    for params in (SICK, NO_STOP):  # in the decoding thread, and in the reader's
        with pytest.raises(OverflowError, match="out of range"):
            list(engine.stream("the dog", params))
    assert threading.active_count() == before
    with pytest.raises(DataError, match="prompt 0: OverflowError: out of range"):
        engine.rollout([[5, 6], [8]], SICK)
    assert engine.generate(["one"], FINE)[0].text == alone[1].text


def test_other_threads_go_on(engine: LocalEngine) -> None:
    expected = engine.generate(["the cat"], FINE)[0].text
    found: list[Any] = []

    def work(params: SamplingParams) -> None:
        found.extend((params, engine.generate(["the cat"], params)[0]) for _ in range(4))

    threads = [threading.Thread(target=work, args=(p,)) for p in (FINE, SICK, FINE, NO_STOP)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 16
    for params, output in found:
        assert (output.text == expected and not output.error) if params is FINE else output.error


def test_every_bad_request_is_named_and_a_good_one_is_served(engine: LocalEngine) -> None:
    window = min(engine.context_length, 1000)
    good = engine.generate(["the cat"], FINE)[0]
    odd: Any = {"role": "user"}
    cases: list[tuple[Any, SamplingParams, str]] = [
        ([], FINE, "the prompt is empty"),
        ([5] * (window + 1), FINE, f"the prompt has {window + 1} tokens and the model's context is {window}"),
        ([5, 999], FINE, "the prompt has token ids outside 0..319"),
        (["five"], FINE, "ValueError: invalid literal"),
        (None, FINE, "TypeError"),
        ("poison", FINE, "KeyError: 'no such piece'"),
        ([odd], FINE, "the tokenizer has no chat template"),
        ("one", SamplingParams(stop_tokens=(5, 999)), "stop_tokens has the token 999, which is outside 0..319"),
        ("one", SamplingParams(banned_tokens=(-1,)), "banned_tokens has the token -1, which is outside 0..319"),
        ("one", SamplingParams(logit_bias={320: 1.0}), "logit_bias has the token 320, which is outside 0..319"),
        ("one", SamplingParams(banned_tokens=tuple(range(320))), "banned_tokens names every token"),
    ]
    if window == 1000:  # some positions have no end
        cases = [case for case in cases if "context is" not in case[2]]
    prompts, each = [case[0] for case in cases], [case[1] for case in cases]
    outputs = engine.generate(["the cat", *prompts, "the cat"], [FINE, *each, FINE])
    assert outputs[0].text == outputs[-1].text == good.text and not outputs[0].error and not outputs[-1].error
    for output, (_, _, words) in zip(outputs[1:-1], cases, strict=True):
        assert words in (output.error or "") and not output.completions
    for prompt, params, words in (case for case in cases if "the prompt has" in case[2] or "empty" in case[2]):
        with pytest.raises(DataError, match=words):
            list(engine.stream(prompt, params))


def test_a_pair_that_cannot_be_encoded_is_an_error_of_its_own(engine: LocalEngine) -> None:
    fine, sick, far = engine.score([("the cat", " sat"), ("poison", " sat"), ([5], [999])])
    alone = engine.score([("the cat", " sat")])[0]
    assert fine.error is None and fine.logprob == pytest.approx(alone.logprob, abs=1e-5)
    assert sick.error == "KeyError: 'no such piece'"
    assert far.error == "context or continuation has token ids outside 0..319"


def test_masked_pairs_too(make_tokenizer: Any) -> None:
    engine = LocalEngine(make_masked("bert"), Touchy(make_tokenizer("<s> $A </s>")))
    fine, sick, far = engine.score([("the cat", " sat"), ("poison", " sat"), ([5], [999])])
    assert fine.error is None and fine.logprob < 0
    assert sick.error == "KeyError: 'no such piece'"
    assert far.error == "context or continuation has token ids outside 0..319"


def test_an_engine_without_a_tokenizer_takes_ids_alone() -> None:
    engine = LocalEngine(make_model("llama"), None)
    text, ids, chat = engine.generate(["one", [5, 6], [{"role": "user", "content": "a"}]], SamplingParams(max_tokens=3))
    for output in (text, chat):
        assert output.error == "the prompt is text or messages, but the engine has no tokenizer; give token ids"
    assert ids.error is None and ids.completions[0].tokens


def test_parameters_of_another_type_are_named() -> None:
    cases: list[tuple[str, Any]] = [
        ("temperature", "hot"), ("max_tokens", None), ("n", "two"), ("stop", (3,)), ("logprobs", -1), ("top_p", None),
        ("max_tokens", 3.5), ("n", 1.0), ("top_k", 2.5), ("logit_bias", {5: float("nan")}), ("logit_bias", {5: 1e39}),
    ]  # fmt: skip
    for name, value in cases:
        with pytest.raises(ConfigError, match=f"{name} must be .*, got " + re.escape(repr(value))):
            SamplingParams(**{name: value})


def test_log_probs_of_a_prompt_that_fail_are_an_error(monkeypatch: pytest.MonkeyPatch, make_tokenizer: Any) -> None:
    engine = LocalEngine(make_model("llama"), make_tokenizer("$A"))

    monkeypatch.setattr(engine, "score", lambda pairs: [Score(float("nan"), error="no") for _ in pairs])
    first, second = engine.generate(["the cat", "one"], [SamplingParams(prompt_logprobs=0), SamplingParams()])
    assert first.error == "no" and not first.completions and second.error is None


def test_a_model_that_gives_nan_says_so(make_tokenizer: Any) -> None:
    """Before, the last token of the vocabulary came out, again and again."""
    model: Any = make_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = float("nan")
    engine, words = LocalEngine(model, make_tokenizer("$A")), "the model gives NaN: its weights are not finite, or they"
    for temperature in (0.0, 1.0):
        params = SamplingParams(max_tokens=3, seed=1, temperature=temperature, banned_tokens=(1,))
        alone = engine.generate([[5, 6]], params)[0]
        fine, sick = engine.generate([[5, 6], [5, 7]], params)
        assert len(alone.completions[0].tokens) == 3 and words in (sick.error or "")
        # NaN crosses masks (0 times NaN): a row of the same forward may be lost as well, but not silently
        assert words in fine.error if fine.error else fine.completions[0].tokens == alone.completions[0].tokens
    sound, score = engine.score([([5], [6])])[0], engine.score([([5, 7], [6])])[0]
    assert sound.error is None and words in (score.error or "")
    with pytest.raises(DataError, match=r"prompt [01]: the model gives NaN"):
        engine.rollout([[9], [7]], SamplingParams(max_tokens=2, seed=1))
