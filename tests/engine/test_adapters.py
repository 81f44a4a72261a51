"""Models wrapped by peft: LoRA follows plans and is live; learned prompts run through peft itself, or are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import (
    AdaptionPromptConfig,
    IA3Config,
    LoraConfig,
    MultitaskPromptTuningConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)

from tests.engine.test_local_engine import PROMPTS, make_model
from tests.engine.test_masked_and_seq2seq import PAIRS, make_masked, make_seq2seq
from tutelage.core.errors import DataError
from tutelage.engine import LocalEngine, SamplingParams
from tutelage.model.adapters import LoraSettings
from tutelage.model.hub import merged
from tutelage.model.tuning import add_adapter

# what peft itself says of names that transformers will drop
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:fan_in_fan_out")
SAMPLED = SamplingParams(max_tokens=9, n=3, seed=4, temperature=0.8, banned_tokens=(1,))
GREEDY = SamplingParams(max_tokens=9, temperature=0, banned_tokens=(1,))
# a long beginning that all share, so that it is kept once
CROWD = [[*range(20, 40), *ids] for ids in ([5], [6, 7], [8, 9, 10])]


def moved(model: Any, seed: int = 0) -> Any:
    """The model with adapters that change its answers (LoRA begins at zero)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def answers(engine: LocalEngine) -> tuple[list[Any], list[float]]:
    """Tokens of greedy and sampled completions; log-probs of these, and scores."""
    outputs = [o for params in (GREEDY, SAMPLED) for o in engine.generate([*PROMPTS, *CROWD], params)]
    made = [c for output in outputs for c in output.completions]
    scores = engine.score([(context, said) for context in CROWD for said in ([50], [51, 52])])
    return [c.tokens for c in made], [x for c in made for x in c.logprobs] + [s.logprob for s in scores]


@pytest.fixture
def tokenizer(make_tokenizer: Any) -> Any:
    return make_tokenizer("$A")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_lora_model_answers_as_the_merged_one(family: str, tokenizer: Any) -> None:
    plain = answers(LocalEngine(make_model(family), tokenizer))
    model = moved(add_adapter(make_model(family), "lora", LoraSettings(r=4)))  # type: ignore[arg-type]
    engine = LocalEngine(model, tokenizer)
    tokens, logprobs = answers(engine)
    assert engine.support.plans, engine.support.reason
    expected = answers(LocalEngine(merged(model), tokenizer))
    assert tokens == expected[0] and logprobs == pytest.approx(expected[1], abs=1e-4)
    assert logprobs != pytest.approx(plain[1], abs=0.1)  # the adapters do something
    with model.disable_adapter():
        bare = answers(engine)
    assert bare[0] == plain[0] and bare[1] == pytest.approx(plain[1], abs=1e-4)
    again = answers(engine)
    assert again[0] == tokens and again[1] == pytest.approx(logprobs, abs=1e-5)


def test_each_training_step_of_an_adapter_is_seen(tokenizer: Any) -> None:
    """Nothing of the trie outlives a call: what is generated and scored follows every step."""
    model = moved(add_adapter(make_model("llama"), "lora", LoraSettings(r=4))).train()  # type: ignore[arg-type]
    engine = LocalEngine(model, tokenizer)
    # at a rate of 1 the weights grow until merging alone, in fp32, moves the logits by 9e-5
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    ids, seen = torch.tensor([CROWD[2] * 2]), []
    for _ in range(3):
        tokens, logprobs = answers(engine)
        expected = answers(LocalEngine(merged(model).eval(), tokenizer))
        assert tokens == expected[0] and logprobs == pytest.approx(expected[1], abs=1e-4)
        seen.append(logprobs)
        assert model.training
        model(ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert seen[0] != pytest.approx(seen[1], abs=1e-2) and seen[1] != pytest.approx(seen[2], abs=1e-2)


def test_two_adapters_take_turns(tokenizer: Any) -> None:
    model = moved(add_adapter(make_model("llama"), "lora", LoraSettings(r=4)))  # type: ignore[arg-type]
    model.add_adapter("second", LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    engine = LocalEngine(model, tokenizer)
    first = answers(engine)
    model.set_adapter("second")
    moved(model, seed=1)
    second = answers(engine)
    expected = answers(LocalEngine(merged(model), tokenizer))
    assert second[0] == expected[0] and second[1] == pytest.approx(expected[1], abs=1e-4)
    model.set_adapter("default")
    assert answers(engine)[1] == pytest.approx(first[1], abs=1e-5) and first[1] != pytest.approx(second[1], abs=1e-2)


def test_masked_lms_and_encoder_decoders_with_lora(make_tokenizer: Any) -> None:
    for make, template in ((lambda: make_masked("bert"), "<s> $A </s>"), (lambda: make_seq2seq("t5"), "$A </s>")):
        tokenizer = make_tokenizer(template)
        plain = [s.logprob for s in LocalEngine(make(), tokenizer).score(PAIRS)]
        config = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear")  # of no task
        model = moved(get_peft_model(make(), config))
        engine, whole = LocalEngine(model, tokenizer), LocalEngine(merged(model), tokenizer)
        found = [s.logprob for s in engine.score(PAIRS)]
        assert found == pytest.approx([s.logprob for s in whole.score(PAIRS)], abs=1e-4)
        assert found != pytest.approx(plain, abs=0.1)
        if engine.kind == "seq2seq":
            pairs = zip(engine.generate(PROMPTS, GREEDY), whole.generate(PROMPTS, GREEDY), strict=True)
            assert all(a.completions[0].tokens == b.completions[0].tokens for a, b in pairs)


@pytest.mark.parametrize("kind", ["dora", "embeddings and head", "tokens", "ia3", "adaption prompt", "saved modules"])
def test_adapters_of_other_kinds_are_what_peft_says(kind: str, tokenizer: Any) -> None:
    """Tried while the adapters did nothing yet, used once they do."""
    common: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    made: Any = {
        "dora": lambda: LoraConfig(**common, r=4, use_dora=True, target_modules="all-linear"),
        "embeddings and head": lambda: LoraConfig(**common, r=4, target_modules=["q_proj", "embed_tokens", "lm_head"]),
        "tokens": lambda: LoraConfig(**common, r=4, target_modules=["q_proj"], trainable_token_indices=[5, 6, 52]),
        "ia3": lambda: IA3Config(**common, target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        "adaption prompt": lambda: AdaptionPromptConfig(**common, adapter_len=4, adapter_layers=2),
        "saved modules": lambda: LoraConfig(**common, r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    }[kind]()
    model: Any = get_peft_model(make_model("llama"), made)  # type: ignore[arg-type]
    engine = LocalEngine(model, tokenizer)
    assert engine.support.plans, engine.support.reason
    before = engine.score([(CROWD[0], [50, 51])])[0].logprob
    moved(model)
    for output in engine.generate(CROWD, SAMPLED):
        for found in output.completions:
            expected = (last_logits(model, [*output.prompt_tokens, *found.tokens[:-1]]) / 0.8).log_softmax(-1)
            assert found.logprobs[-1] == pytest.approx(float(expected[found.tokens[-1]]), abs=1e-4)
    score = engine.score([(CROWD[0], [50, 51])])[0]
    rows = [last_logits(model, [*CROWD[0], *said]).log_softmax(-1) for said in ([], [50])]
    assert score.token_logprobs == pytest.approx([float(rows[0][50]), float(rows[1][51])], abs=1e-4)
    assert abs(score.logprob - before) > 1e-3  # ten times the tolerance


def prompted(kind: str, family: str) -> Any:
    common: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 5}
    config = {
        "prompt": lambda: PromptTuningConfig(**common),
        "p-tuning": lambda: PromptEncoderConfig(**common, encoder_hidden_size=8),
        "prefix": lambda: PrefixTuningConfig(**common),
    }[kind]()
    torch.manual_seed(0)
    return moved(get_peft_model(make_model(family), config))  # type: ignore[arg-type]


@torch.no_grad()
def last_logits(model: Any, ids: list[int]) -> torch.Tensor:
    """What peft's own forward of the whole text says of the next token [V]."""
    return model(input_ids=torch.tensor([ids])).logits[0, -1].float()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["prompt", "p-tuning", "prefix"])
def test_a_learned_prompt_stands_before_every_text(kind: str, family: str, tokenizer: Any) -> None:
    model = prompted(kind, family)
    engine = LocalEngine(model, tokenizer)
    assert not engine.support.plans and "learned prompt" in engine.support.reason
    asked = [[5, 6, 7], [8], [9, 10, 11], [12, 13]]
    each = [SamplingParams(max_tokens=n, temperature=0, banned_tokens=(1,)) for n in (3, 9, 6, 5)]
    for ids, params, output in zip(asked, each, engine.generate(asked, each), strict=True):
        made = output.completions[0]
        assert len(made.tokens) == params.max_tokens
        for k, token in enumerate(made.tokens):
            logits = last_logits(model, [*ids, *made.tokens[:k]])
            assert made.logprobs[k] == pytest.approx(float(logits.log_softmax(-1)[token]), abs=1e-4)
            logits[1] = -torch.inf
            assert int(logits.argmax()) == token
    for output in engine.generate(asked[:2], SAMPLED):
        for made in output.completions:
            ids = [*output.prompt_tokens, *made.tokens[:-1]]
            expected = (last_logits(model, ids) / 0.8).log_softmax(-1)[made.tokens[-1]]
            assert made.logprobs[-1] == pytest.approx(float(expected), abs=1e-4)
    pairs = [([5, 6, 7], [8, 9]), ([5], [6]), ([10, 11], [12, 13, 14])]
    bare = LocalEngine(make_model(family), tokenizer).score(pairs)
    for (context, said), score, other in zip(pairs, engine.score(pairs), bare, strict=True):
        rows = [last_logits(model, [*context, *said[:k]]).log_softmax(-1) for k in range(len(said))]
        assert score.token_logprobs == pytest.approx([float(r[t]) for r, t in zip(rows, said)], abs=1e-4)
        assert abs(score.logprob - other.logprob) > 1e-3
    with model.disable_adapter():
        assert [s.logprob for s in engine.score(pairs)] == pytest.approx([s.logprob for s in bare], abs=1e-4)


def test_virtual_tokens_take_their_part_of_the_context(tokenizer: Any) -> None:
    engine = LocalEngine(prompted("prompt", "gpt2"), tokenizer)
    over, fits = engine.generate([[5] * 60, [5] * 55], SamplingParams(max_tokens=50, banned_tokens=(1,)))
    assert over.error == "the prompt has 60 tokens and the model's context is 59"
    assert fits.error is None and len(fits.completions[0].tokens) == 4
    assert "context is 59" in (engine.score([([5] * 58, [6, 7, 8])])[0].error or "")


def test_what_cannot_be_run_is_refused_by_name(tokenizer: Any) -> None:
    config = MultitaskPromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, num_tasks=2)
    engine = LocalEngine(get_peft_model(make_model("llama"), config), tokenizer)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="MULTITASK_PROMPT_TUNING needs task_ids"):
        engine.generate("one")
    seq2seq = get_peft_model(make_seq2seq("t5"), PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3))
    refused = "PROMPT_TUNING on an encoder-decoder is not supported; on a causal LM it is"
    for call in (lambda e: e.generate("one"), lambda e: e.score([("one", " two")])):
        with pytest.raises(DataError, match=refused):
            call(LocalEngine(seq2seq, tokenizer))
