"""The local engine against transformers and against itself."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

from tutelage.engine import SamplingParams
from tutelage.engine.local import LocalEngine

TEXT = ["the cat sat on the mat and the dog ran away", "do you like tea? yes, I like it very much", "one two"] * 9
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}bot:{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    made = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")
    made.chat_template = TEMPLATE
    return made


def make_model(family: str) -> object:
    common = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"intermediate_size": 48, "max_position_embeddings": 64, "num_key_value_heads": 1}
    config = {
        "qwen3": lambda: Qwen3Config(**common, **more, head_dim=16, tie_word_embeddings=False),
        "llama": lambda: LlamaConfig(**common, **more),
        "gpt2": lambda: GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=2, n_positions=64),
    }[family]()
    config.pad_token_id, config.eos_token_id, config.bos_token_id = 0, 1, None
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():  # sharper logits than the initialisation's, so that greedy choices are clear
        model.get_output_embeddings().weight.mul_(12)
    return model


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="module", params=["qwen3", "llama", "gpt2"])
def engine(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast) -> LocalEngine:
    return LocalEngine(make_model(request.param), tokenizer)


PROMPTS = ["the cat", "do you like tea? yes", "one", "the dog ran away and"]


def test_greedy_equals_transformers(engine: LocalEngine) -> None:
    outputs = engine.generate(PROMPTS, SamplingParams(max_tokens=20, temperature=0))
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        ids = torch.tensor([engine.encode(prompt)])
        full = engine.model.generate(ids, max_new_tokens=20, do_sample=False, attention_mask=torch.ones_like(ids))
        assert list(output.completions[0].tokens) == full[0, ids.shape[1] :].tolist()


def test_logprobs_equal_full_forward_at_temperature(engine: LocalEngine) -> None:
    params = SamplingParams(max_tokens=16, temperature=0.7, top_k=20, top_p=0.9, n=3, seed=5, banned_tokens=(1,))
    for output in engine.generate(PROMPTS, params):
        for completion in output.completions:
            ids = torch.tensor([[*output.prompt_tokens, *completion.tokens]])
            logprobs = (engine.model(ids).logits[0] / 0.7).log_softmax(-1)
            start = len(output.prompt_tokens)
            for k, token in enumerate(completion.tokens):
                assert abs(float(logprobs[start + k - 1, token]) - completion.logprobs[k]) < 1e-4


def test_seeded_completion_is_independent_of_neighbours(engine: LocalEngine) -> None:
    params = SamplingParams(max_tokens=12, seed=3)
    alone = engine.generate(["one"], params)[0].completions[0]
    among = engine.generate(PROMPTS, params)[2].completions[0]
    assert alone.tokens == among.tokens
    many = engine.generate(["one"], SamplingParams(max_tokens=12, seed=3, n=4))[0].completions
    assert many[0].tokens == alone.tokens
    assert len({c.tokens for c in many}) > 1


def test_stop_string_spans_tokens(engine: LocalEngine) -> None:
    free = engine.generate(["the cat"], SamplingParams(max_tokens=20, temperature=0))[0].completions[0]
    pieces = [engine.text_of([t]) for t in free.tokens]
    k = next(i for i in range(4, 18) if pieces[i].isascii() and pieces[i + 1].isascii())
    stop = pieces[k][-1] + pieces[k + 1][0]
    cut = engine.generate(["the cat"], SamplingParams(max_tokens=20, temperature=0, stop=(stop,)))[0].completions[0]
    assert cut.finish_reason == "stop"
    assert stop not in cut.text
    assert cut.text == free.text[: free.text.index(stop)]
    assert len(cut.tokens) <= k + 2


def test_stop_and_banned_tokens(engine: LocalEngine) -> None:
    free = engine.generate(["one"], SamplingParams(max_tokens=8, temperature=0))[0].completions[0]
    third = free.tokens[2]
    cut = engine.generate(["one"], SamplingParams(max_tokens=8, temperature=0, stop_tokens=(third,)))[0].completions[0]
    assert cut.tokens == free.tokens[: free.tokens.index(third) + 1]
    assert cut.finish_reason == "stop"
    other = engine.generate(["one"], SamplingParams(max_tokens=8, temperature=0, banned_tokens=(third,)))[0]
    assert third not in other.completions[0].tokens


def test_rollout_shapes_seeds_and_errors(engine: LocalEngine) -> None:
    ids = [engine.encode(p) for p in PROMPTS]
    params = SamplingParams(max_tokens=6, n=2, seed=1)
    first, second = engine.rollout(ids, params), engine.rollout(ids, params)
    assert first == second and len(first) == 8
    same = engine.rollout([ids[0]] * 6, SamplingParams(max_tokens=6, seed=1))
    assert len({c.tokens for c in same}) > 1
    out = engine.generate([[5] * 70, "one"], params)
    assert "70 tokens" in out[0].error and "64" in out[0].error
    assert out[1].error is None


def test_chunks_and_finished_rows_change_nothing(engine: LocalEngine) -> None:
    each = [SamplingParams(max_tokens=2 + 5 * (i % 4), seed=i) for i in range(12)]
    prompts = [PROMPTS[i % 4] for i in range(12)]
    whole = engine.generate(prompts, each)
    small = LocalEngine(engine.model, engine.tokenizer, max_rows=3).generate(prompts, each)
    assert [o.completions[0].tokens for o in whole] == [o.completions[0].tokens for o in small]
    assert [len(o.completions[0].tokens) for o in whole][:4] == [2, 7, 12, 17]


def test_stream_joins_to_the_completion(engine: LocalEngine) -> None:
    params = SamplingParams(max_tokens=15, seed=2)
    pieces = list(engine.stream("the cat", params))
    whole = engine.generate(["the cat"], params)[0].completions[0]
    assert "".join(p.text for p in pieces) == whole.text
    assert pieces[-1].finish_reason == whole.finish_reason


def test_score_equals_full_forward(engine: LocalEngine) -> None:
    pairs = [("the cat", " sat on the mat"), ("one", " two"), ("do you like tea?", " yes, I like it")]
    for (left, right), score in zip(pairs, engine.score(pairs), strict=True):
        ids = torch.tensor([engine.encode(left + right)])
        n = len(score.tokens)
        logprobs = engine.model(ids).logits[0, :-1].log_softmax(-1)[torch.arange(ids.shape[1] - 1), ids[0, 1:]][-n:]
        assert abs(float(logprobs.sum()) - score.logprob) < 1e-4


def test_messages_use_the_chat_template(engine: LocalEngine) -> None:
    assert engine.encode([{"role": "user", "content": "one"}]) == engine.encode("user: one\nbot:")


def test_a_special_token_as_stop_string(engine: LocalEngine) -> None:
    params = SamplingParams(max_tokens=9, logit_bias={0: 1e4}, stop=("<pad>", "zzz"))
    made = engine.generate(["one"], params)[0].completions[0]
    assert (made.tokens, made.text, made.finish_reason) == ((0,), "", "stop")


def test_repetition_penalty_equals_transformers(engine: LocalEngine) -> None:
    made = engine.generate(PROMPTS[:2], SamplingParams(max_tokens=12, temperature=0, repetition_penalty=1.7))
    for prompt, output in zip(PROMPTS, made, strict=False):
        ids = torch.tensor([engine.encode(prompt)])
        full = engine.model.generate(
            ids, max_new_tokens=12, do_sample=False, repetition_penalty=1.7, attention_mask=torch.ones_like(ids)
        )
        assert list(output.completions[0].tokens) == full[0, ids.shape[1] :].tolist()


def test_alternatives_and_prompt_logprobs(engine: LocalEngine) -> None:
    output = engine.generate(["the cat"], SamplingParams(max_tokens=5, temperature=0, logprobs=3, prompt_logprobs=0))[0]
    made = output.completions[0]
    assert made.top_logprobs is not None and [len(t) for t in made.top_logprobs] == [3] * 5
    for token, logprob, top in zip(made.tokens, made.logprobs, made.top_logprobs, strict=True):
        assert abs(top[token] - logprob) < 1e-5 and max(top.values()) == top[token]
    assert output.prompt_logprobs is not None and len(output.prompt_logprobs) == len(output.prompt_tokens)


def test_training_model_is_left_as_it_was(engine: LocalEngine) -> None:
    engine.model.train()
    engine.rollout([engine.encode("one")], SamplingParams(max_tokens=2))
    assert engine.model.training and engine.model.config._attn_implementation == "eager"
    engine.model.eval()


def test_max_tokens_is_clipped_to_the_context(engine: LocalEngine) -> None:
    prompt = [5] * 60
    made = engine.generate([prompt], SamplingParams(max_tokens=50, banned_tokens=(1,)))[0].completions[0]
    assert len(made.tokens) == 4 and made.finish_reason == "length"
    assert engine.generate(["one"], SamplingParams(max_tokens=0))[0].completions[0].tokens == ()


def test_closing_a_stream_early_ends_its_thread(engine: LocalEngine) -> None:
    import threading

    others = set(threading.enumerate())
    stream = engine.stream("the cat", SamplingParams(max_tokens=50, banned_tokens=(1,)))
    next(stream)
    begun = set(threading.enumerate()) - others
    stream.close()
    assert not any(thread.is_alive() for thread in begun)


def test_text_continues_the_prompt_when_the_tokenizer_strips_blanks() -> None:
    words = {w: i for i, w in enumerate(["<pad>", "<eos>", *[f"w{i}" for i in range(318)]])}
    inner = Tokenizer(models.WordLevel({"\u2581" + w: i for w, i in words.items()}, unk_token="\u2581<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    inner.decoder = decoders.Metaspace(prepend_scheme="always")
    engine = LocalEngine(make_model("llama"), PreTrainedTokenizerFast(tokenizer_object=inner))
    assert engine.encode("w5 w6") == [7, 8]
    made = engine.generate(["w5 w6"], SamplingParams(max_tokens=3, seed=1, banned_tokens=(0, 1)))[0].completions[0]
    assert "w5 w6" + made.text == engine.text_of([7, 8, *made.tokens])
    cut = engine.generate(["w5 w6"], SamplingParams(max_tokens=3, seed=1, banned_tokens=(0, 1), stop=(" ",)))[0]
    assert cut.text == "" and len(cut.completions[0].tokens) == 1
