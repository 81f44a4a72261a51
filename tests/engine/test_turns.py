"""An answer to messages ends with the turn: in generate, in stream, and in other libraries' generation."""

from __future__ import annotations

import pytest
import torch

from tutelage.engine import LocalEngine, SamplingParams
from tutelage.model.hub import create_model, load_model, save_model
from tutelage.text.chat import ensure_chat, turn_end_id
from tutelage.text.tokenizer import ensure_pad, train_tokenizer

CHAT = [{"role": "user", "content": "one two"}]


@pytest.fixture(scope="module")
def engine() -> LocalEngine:
    tokenizer = train_tokenizer(["one two three four"] * 9, 300)
    ensure_pad(tokenizer)
    ensure_chat(tokenizer)
    return LocalEngine(create_model("laptop-0.3m", tokenizer, 64).eval(), tokenizer)


@pytest.mark.parametrize("forget", [False, True])
def test_an_answer_ends_with_its_turn(engine: LocalEngine, forget: bool) -> None:
    end = turn_end_id(engine.tokenizer)
    before = engine.model.generation_config.eos_token_id
    if forget:  # a model saved elsewhere may name the end of text alone
        engine.model.generation_config.eos_token_id = engine.tokenizer.eos_token_id
    params = [SamplingParams(max_tokens=9, temperature=0, logit_bias={end: 1e4}), SamplingParams(max_tokens=3)]
    try:
        ended, other = engine.generate([CHAT, "one"], params)
        assert ended.completions[0].tokens == (end,) and ended.text == ""
        assert ended.completions[0].finish_reason in ("stop", "eos")
        assert len(other.completions[0].tokens) <= 3
        pieces = list(engine.stream(CHAT, params[0]))
        assert pieces[-1].finish_reason in ("stop", "eos") and "".join(p.text for p in pieces) == ""
    finally:
        engine.model.generation_config.eos_token_id = before


def test_transformers_generate_stops_there_too(engine: LocalEngine, tmp_path) -> None:
    save_model(engine.model, engine.tokenizer, tmp_path / "model")
    model, tokenizer = load_model(tmp_path)
    end = turn_end_id(tokenizer)
    with torch.no_grad():  # make the turn's end the only choice
        model.get_output_embeddings().weight.zero_()
        model.get_output_embeddings().weight[end] = 1.0
        model.base_model.norm.weight.fill_(1.0)
    ids = torch.tensor([engine.encode(CHAT)])
    made = model.generate(ids, max_new_tokens=5, do_sample=False)
    assert set(model.generation_config.eos_token_id) == {tokenizer.eos_token_id, end}
    hidden = model.base_model(ids).last_hidden_state[0, -1].sum()
    if hidden > 0:  # else its logit is negative and another token wins
        assert made[0, ids.shape[1] :].tolist() == [end]
