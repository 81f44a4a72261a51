"""Logits in chunks by the model's own head: losses and gradients of the plain loss, whatever the head does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    OPTConfig,
    PhiConfig,
)

from tutelage.loss.lm import chunked_nats
from tutelage.model.adapters import LoraSettings
from tutelage.model.lm_head import lm_head, states
from tutelage.model.tuning import add_adapter
from tutelage.text.loader import collate, collate_flat
from tutelage.train.objectives import Chunked, answer_nats, causal

VOCAB = 60
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS = {
    "gpt2, tied": GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, attn_pdrop=0,
                             resid_pdrop=0, embd_pdrop=0),
    "llama": LlamaConfig(**SHAPE),
    "soft-cap": Gemma2Config(**SHAPE, num_key_value_heads=2, head_dim=8, final_logit_softcapping=2.0),
    "scaled": CohereConfig(**SHAPE, logit_scale=0.3),
    "divided": GraniteConfig(**SHAPE, logits_scaling=3.0),
    "bias": PhiConfig(**SHAPE),
    "bloom": BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4),
}  # fmt: skip


def made(name: str) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="eager").eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.2)
    return model


def rows() -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(1)
    out = []
    for length in (3, 21, 9, 2, 20):
        ids = torch.randint(VOCAB, (length,), generator=generator).tolist()
        out.append({"input_ids": ids, "labels": [-100] * (length // 2) + ids[length // 2 :]})
    return out


def loss_and_gradients(model: Any, objective: Any, batch: Any) -> tuple[float, int, list[Any]]:
    model.zero_grad()
    loss, metrics = objective(model, batch)
    loss.backward()
    return float(loss.detach()), metrics["count"], [p.grad for p in model.parameters()]


def same(model: Any, batch: Any) -> None:
    head = lm_head(model)
    assert head is not None
    plain = loss_and_gradients(model, causal, batch)
    chunked = loss_and_gradients(model, Chunked(head), batch)
    assert chunked[0] == pytest.approx(plain[0], rel=1e-5) and chunked[1] == plain[1]
    for a, b in zip(plain[2], chunked[2], strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5 * float(1 + a.abs().max()))


@pytest.mark.parametrize("name", CONFIGS)
def test_losses_and_gradients_are_those_of_all_logits_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.loss.lm.LOGITS_ALIVE", 1)
    monkeypatch.setattr("tutelage.loss.lm.LEAST", 4)
    model = made(name)
    same(model, collate(rows(), 0))
    if name != "bloom":  # takes no positions
        same(model, collate_flat(rows()))


def test_adapters_and_a_head_in_the_adapter() -> None:
    batch = collate(rows(), 0)
    for settings in (LoraSettings(r=2), LoraSettings(r=2, targets=["q_proj", "lm_head"])):
        same(add_adapter(made("llama"), "lora", settings, tokens=[3, 5]), batch)
    prompted = get_peft_model(made("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    same(prompted, batch)
    assert states(prompted, input_ids=batch["input_ids"]).shape[:2] == batch["input_ids"].shape


def test_nats_of_answers_with_and_without_chunks() -> None:
    model, batch = made("soft-cap"), collate(rows(), 0)
    head = lm_head(model)
    assert head is not None
    plain, chunked = answer_nats(model, batch, None), answer_nats(model, batch, head)
    torch.testing.assert_close(chunked[0], plain[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(chunked[1], plain[1])
    hidden = states(model, input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    one_by_one, _ = chunked_nats(hidden, head, batch["labels"], VOCAB, chunk=1)
    torch.testing.assert_close(one_by_one, plain[0], rtol=1e-5, atol=1e-5)


def test_a_head_that_mixes_places_is_refused_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    model = made("llama")
    forward = model.lm_head.forward
    model.lm_head.forward = lambda states: forward(states + states.mean(-2, keepdim=True))
    assert lm_head(model) is None
    assert "makes all its logits at once" in caplog.text and "differ" in caplog.text
    config = OPTConfig(vocab_size=VOCAB, hidden_size=32, ffn_dim=48, num_hidden_layers=1, num_attention_heads=4)
    assert lm_head(AutoModelForCausalLM.from_config(config)) is None  # its head asks a part of the trunk
