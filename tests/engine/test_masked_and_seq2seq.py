"""Masked LMs and encoder-decoders behind the engine's two verbs, against brute-force loops and transformers."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    RobertaConfig,
    T5Config,
)

from tutelage.core.errors import DataError
from tutelage.engine import LocalEngine, SamplingParams, load
from tutelage.model.hub import load_model

PAIRS = [
    ("the cat sat", " on the mat"), ("the cat sat ", "on a dog"), ("do you like tea?", " yes"), ("", "one two"),
    ("one", ""), ([5, 9, 11], [20, 21, 22, 23]), ("the cat sat", " away"),
]  # fmt: skip
PROMPTS = ["the cat", "do you like tea? yes", "one", "the dog ran away and the dog"]


def sharpened(model: Any) -> Any:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name.lower() and weight.ndim > 1:
                weight.mul_(3)
    return model.eval()


def make_masked(family: str) -> Any:
    size = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"intermediate_size": 48, "max_position_embeddings": 40, "pad_token_id": 0, "bos_token_id": 1}
    torch.manual_seed(0)
    config = {"bert": BertConfig, "roberta": RobertaConfig}[family](**size, **more, eos_token_id=2)
    return sharpened(AutoModelForMaskedLM.from_config(config))


def make_seq2seq(family: str) -> Any:
    torch.manual_seed(0)
    common = {"vocab_size": 320, "d_model": 32, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
    if family == "t5":  # transformers' own cache has no place for a third decoder layer, so the tests leave it off
        config: Any = T5Config(**common, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=3, num_heads=2)
    else:
        heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 48}
        config = BartConfig(
            **common, **heads, decoder_ffn_dim=48, encoder_layers=2, decoder_layers=1, max_position_embeddings=40,
            bos_token_id=1, forced_bos_token_id=1, forced_eos_token_id=None,
        )  # fmt: skip
    return sharpened(AutoModelForSeq2SeqLM.from_config(config))


@pytest.fixture(scope="module", params=["bert", "roberta"])
def masked(request: pytest.FixtureRequest, make_tokenizer: Any) -> LocalEngine:
    return LocalEngine(make_masked(request.param), make_tokenizer("<s> $A </s>"))


@pytest.fixture(scope="module", params=["t5", "bart"])
def seq2seq(request: pytest.FixtureRequest, make_tokenizer: Any) -> LocalEngine:
    template = {"t5": "$A </s>", "bart": "<s> $A </s>"}[request.param]
    return LocalEngine(make_seq2seq(request.param), make_tokenizer(template))


def spans(engine: LocalEngine, context: Any, continuation: Any) -> tuple[list[int], range]:
    """The whole sequence of a masked LM, and the places of the continuation."""
    if not isinstance(context, str):
        return [*context, *continuation], range(len(context), len(context) + len(continuation))
    context, continuation = context.rstrip(), context[len(context.rstrip()) :] + continuation
    whole = engine.tokenizer(context + continuation)["input_ids"]
    start = len(engine.tokenizer(context, add_special_tokens=False)["input_ids"]) + 1
    return whole, range(start, len(whole) - 1)


def test_masked_scores_equal_a_loop(masked: LocalEngine) -> None:
    for max_tokens in (2048, 30):
        for pair, score in zip(PAIRS, masked.score(PAIRS, max_tokens), strict=True):
            whole, places = spans(masked, *pair)
            expected, greedy = [], True
            for place in places:
                ids = torch.tensor([whole])
                ids[0, place] = 3
                with torch.no_grad():
                    logits = masked.model(ids).logits[0, place]
                expected.append(float(logits.log_softmax(-1)[whole[place]]))
                greedy &= int(logits.argmax()) == whole[place]
            assert score.error is None and list(score.tokens) == [whole[p] for p in places]
            assert score.token_logprobs == pytest.approx(expected, abs=1e-4) and score.is_greedy == greedy
            assert score.logprob == pytest.approx(sum(expected), abs=1e-4)


def test_a_masked_lm_says_why_it_cannot_generate(masked: LocalEngine) -> None:
    with pytest.raises(DataError, match="masked LM cannot generate.*both sides"):
        masked.generate("the cat")
    with pytest.raises(DataError, match="masked LM cannot generate"):
        list(masked.stream("the cat"))
    with pytest.raises(DataError, match="masked LM cannot generate"):
        masked.rollout([[5, 6]], SamplingParams())


def test_masked_limits(masked: LocalEngine) -> None:
    # RoBERTa's first position comes after the padding id's
    limit = 40 - (1 if masked.model.config.model_type == "roberta" else 0)
    fits, over = masked.score([([5] * (limit - 2), [6, 7]), ([5] * (limit - 1), [6, 7])])
    assert fits.error is None and fits.logprob < 0
    assert over.error == (
        f"context and continuation have {limit + 1} tokens with the special ones and the model takes {limit}"
    )


def test_a_tokenizer_without_mask_is_refused(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer("<s> $A </s>")
    tokenizer.mask_token = None
    with pytest.raises(DataError, match="mask_token"):
        LocalEngine(make_masked("bert"), tokenizer).score([("a", " b")])


def head_positions(engine: LocalEngine, pairs: Any) -> tuple[list[float], int]:
    """The scores, and how many positions the head's last layer saw in the making."""
    seen: list[int] = []
    head = engine.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _m, _i, out: seen.append(out.shape[:-1].numel()))
    try:
        return [s.logprob for s in engine.score(pairs)], sum(seen)
    finally:
        hook.remove()


def test_the_head_sees_the_masked_places_alone(masked: LocalEngine) -> None:
    expected = [s.logprob for s in masked.score(PAIRS)]  # and the trial is over
    tokens = sum(len(s.tokens) for s in masked.score(PAIRS))
    found, positions = head_positions(masked, PAIRS)
    assert positions == tokens and found == pytest.approx(expected, abs=1e-5)
    habits = masked.model.__dict__["_tutelage_masked"]
    assert habits.narrow and not habits.even
    masked.model.__dict__["_tutelage_masked"] = replace(habits, narrow=False)
    try:
        whole, positions = head_positions(masked, PAIRS)
    finally:
        masked.model.__dict__["_tutelage_masked"] = habits
    assert positions > 4 * tokens and whole == pytest.approx(expected, abs=1e-4)
    assert not masked.model.base_model._forward_hooks  # nothing is left behind


def test_a_head_that_looks_at_other_places_gets_them_all(make_tokenizer: Any) -> None:
    class Mixing(BertForMaskedLM):
        """Its head adds the mean over all places."""

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.cls.register_forward_pre_hook(lambda _m, given: (given[0] + given[0].mean(1, keepdim=True),))

    size = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = sharpened(Mixing(BertConfig(**size, intermediate_size=48)))
    engine = LocalEngine(model, make_tokenizer("<s> $A </s>"))
    pair = ([5, 9, 11], [20, 21])
    expected = []
    for place in (3, 4):
        ids = torch.tensor([[5, 9, 11, 20, 21]])
        token, ids[0, place] = int(ids[0, place]), 3
        with torch.no_grad():
            expected.append(float(model(ids).logits[0, place].log_softmax(-1)[token]))
    assert engine.score([pair])[0].token_logprobs == pytest.approx(expected, abs=1e-4)
    assert not model.__dict__["_tutelage_masked"].narrow


FAMILIES = ["DistilBert", "Electra", "Albert", "ModernBert", "Deberta", "MPNet", "ConvBert", "RoFormer", "XLM"]


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_of_many_families(family: str) -> None:
    """With the places chosen before the head and after it: the same numbers."""
    import transformers

    size: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"intermediate_size": 48, "max_position_embeddings": 40, "pad_token_id": 0}
    if family == "XLM":
        size = {"n_words": 64, "emb_dim": 32, "n_layers": 2, "n_heads": 2, "pad_index": 0}
    config = getattr(transformers, f"{family}Config")(**size)
    torch.manual_seed(0)
    model = sharpened(AutoModelForMaskedLM.from_config(config))

    class Mask:
        mask_token_id, pad_token_id = 3, 0

    pairs = [([5, 9, 11], [20, 21, 22]), ([7], [8]), ([30, 31, 32, 33, 34], [35])]
    engine = LocalEngine(model, Mask())
    expected = []
    for context, said in pairs:
        for k in range(len(said)):
            ids = torch.tensor([[*context, *said]])
            ids[0, len(context) + k] = 3
            with torch.no_grad():
                logits = model(ids).logits[0, len(context) + k]
            expected.append(float(logits.log_softmax(-1)[said[k]]))
    scores = engine.score(pairs)
    assert [x for s in scores for x in s.token_logprobs] == pytest.approx(expected, abs=1e-4)
    # padding leaks through convolutions: rows of one length go together there
    assert model.__dict__["_tutelage_masked"].narrow == (family != "ConvBert")
    assert model.__dict__["_tutelage_masked"].even == (family == "ConvBert")


def test_answers_score_as_in_a_loop(seq2seq: LocalEngine) -> None:
    tokenizer, model = seq2seq.tokenizer, seq2seq.model
    for max_tokens in (2048, 24):
        for (context, continuation), score in zip(PAIRS, seq2seq.score(PAIRS, max_tokens), strict=True):
            if isinstance(context, str) and isinstance(continuation, str):  # blanks belong to the token behind them
                bare = context.rstrip(" ")
                context, continuation = bare, context[len(bare) :] + continuation
            left = tokenizer(context)["input_ids"] if isinstance(context, str) else context
            right = (
                tokenizer(continuation, add_special_tokens=False)["input_ids"]
                if isinstance(continuation, str)
                else continuation
            )
            assert score.error is None and list(score.tokens) == list(right)
            if not right:
                assert score.logprob == 0
                continue
            with torch.no_grad():
                logits = model(torch.tensor([left]), labels=torch.tensor([right])).logits[0]
            expected = logits.log_softmax(-1).gather(-1, torch.tensor(right)[:, None]).squeeze(-1)
            assert score.token_logprobs == pytest.approx(expected.tolist(), abs=1e-4)
            assert score.is_greedy == (logits.argmax(-1).tolist() == right)


def test_greedy_equals_transformers(seq2seq: LocalEngine) -> None:
    each = [SamplingParams(max_tokens=n, temperature=0) for n in (3, 20, 4, 5)]  # rows leave early
    outputs = seq2seq.generate(PROMPTS, each)
    assert len({o.completions[0].tokens for o in outputs}) > 1
    for prompt, params, output in zip(PROMPTS, each, outputs, strict=True):
        ids = torch.tensor([seq2seq.encode(prompt)])
        full = seq2seq.model.generate(ids, max_new_tokens=params.max_tokens, do_sample=False, use_cache=False)
        assert list(output.completions[0].tokens) == full[0, 1:].tolist()


def test_repetition_penalty_is_that_of_transformers(seq2seq: LocalEngine) -> None:
    params = SamplingParams(max_tokens=12, temperature=0, repetition_penalty=1.7)
    output = seq2seq.generate(PROMPTS[1], params)[0]
    ids = torch.tensor([seq2seq.encode(PROMPTS[1])])
    full = seq2seq.model.generate(ids, max_new_tokens=12, do_sample=False, use_cache=False, repetition_penalty=1.7)
    assert list(output.completions[0].tokens) == full[0, 1:].tolist()


def test_samples_share_one_encoder_pass_and_keep_their_seeds(seq2seq: LocalEngine) -> None:
    passes: list[int] = []
    hook = seq2seq.model.get_encoder().register_forward_hook(lambda _m, _i, out: passes.append(out[0].shape[0]))
    params = SamplingParams(max_tokens=8, temperature=1.3, top_k=40, n=5, seed=3)
    together = seq2seq.generate(PROMPTS, params)
    hook.remove()
    assert passes == [len(PROMPTS)]
    assert len({c.tokens for c in together[0].completions}) > 1
    alone = seq2seq.generate(PROMPTS[2:3], params)[0]
    assert [c.tokens for c in alone.completions] == [c.tokens for c in together[2].completions]
    forced = seq2seq.model.config.model_type == "bart"  # its first token is no choice
    for output in together:
        for completion in output.completions:
            ids = torch.tensor([list(output.prompt_tokens)])
            with torch.no_grad():
                logits = seq2seq.model(ids, labels=torch.tensor([list(completion.tokens)])).logits[0] / 1.3
            expected = logits.log_softmax(-1).gather(-1, torch.tensor(completion.tokens)[:, None]).squeeze(-1).tolist()
            assert completion.logprobs[forced:] == pytest.approx(expected[forced:], abs=1e-4)


def test_streaming_stops_and_bad_requests(seq2seq: LocalEngine) -> None:
    params = SamplingParams(max_tokens=10, temperature=0)
    whole = seq2seq.generate("the cat", params)[0]
    assert "".join(p.text for p in seq2seq.stream("the cat", params)) == whole.text
    end = whole.completions[0].tokens[4]
    stopped = seq2seq.generate("the cat", SamplingParams(max_tokens=10, temperature=0, stop_tokens=(end,)))[0]
    assert stopped.completions[0].finish_reason == "stop" and stopped.completions[0].tokens[-1] == end
    empty, fine = seq2seq.generate([[], "the cat"], params)
    assert empty.error == "the prompt is empty" and fine.text == whole.text
    asked = seq2seq.generate("the cat", SamplingParams(prompt_logprobs=1))[0]
    assert asked.error is not None and "prompt_logprobs" in asked.error
    if seq2seq.model.config.model_type == "bart":
        over, long = seq2seq.generate([[5] * 41, [5] * 40], SamplingParams(max_tokens=60, temperature=0))
        assert over.error == "the prompt has 41 tokens and the model's context is 40"
        assert len(long.completions[0].tokens) <= 39  # the decoder's own context, less its start token
        assert seq2seq.score([([5] * 41, [5])])[0].error == "the context has 41 tokens and the model takes 40"


@pytest.mark.parametrize("family", ["bert", "roberta", "t5", "bart"])
def test_folders_load_by_their_architecture(family: str, tmp_path: Any, caplog: Any, make_tokenizer: Any) -> None:
    model = make_masked(family) if family in ("bert", "roberta") else make_seq2seq(family)
    tokenizer = make_tokenizer("$A </s>" if family == "t5" else "<s> $A </s>")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        engine = load(tmp_path, device="cpu")
        scores = engine.score(PAIRS)
        if engine.kind == "seq2seq":
            engine.generate("the cat", SamplingParams(max_tokens=3))
    assert type(engine.model) is type(model) and not engine.support.plans
    assert not [r for r in caplog.records if r.name == "tutelage"]  # nothing was tried, so nothing is reported
    expected = LocalEngine(model, tokenizer).score(PAIRS)
    assert [s.logprob for s in scores] == pytest.approx([s.logprob for s in expected], abs=1e-4)
    with pytest.raises(DataError, match="holds (a masked LM|an encoder-decoder); a causal language model is needed"):
        load_model(tmp_path)


def test_causal_models_stay_causal() -> None:
    tiny = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    causal = AutoModelForCausalLM.from_config(LlamaConfig(**tiny, intermediate_size=32))
    assert LocalEngine(causal, None).kind == "causal"
    decoder = AutoModelForCausalLM.from_config(BertConfig(**tiny, intermediate_size=32, is_decoder=True))
    assert LocalEngine(decoder, None).kind == "causal"
    half = AutoModelForCausalLM.from_config(make_seq2seq("bart").config)
    assert LocalEngine(half, None).kind == "causal"

    class Mine(BertForMaskedLM):
        pass

    assert LocalEngine(Mine(BertConfig(**tiny, intermediate_size=32)), None).kind == "masked"
