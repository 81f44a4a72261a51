"""Documents one behind another: losses and gradients of a padded batch, for every family that follows a plan."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, MistralConfig, Qwen3Config

from tutelage.model.kernels import How, trainable
from tutelage.text.loader import collate, collate_flat
from tutelage.train.objectives import causal

SHAPE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS = {
    "gpt2": GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, attn_pdrop=0, resid_pdrop=0,
                       embd_pdrop=0),
    "llama": LlamaConfig(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE),
    "window": MistralConfig(**SHAPE, sliding_window=6),
    "softcap": Gemma2Config(**SHAPE, sliding_window=6, query_pre_attn_scalar=8),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_flat_rows_have_the_loss_and_gradients_of_padded_ones(name: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="eager")
    generator = torch.Generator().manual_seed(1)
    rows = []
    for length in (3, 21, 9, 2, 20, 12, 40):
        ids = torch.randint(64, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100] + ids[1:]})
    found = {}
    for kind, batch in (("padded", collate(rows, 0)), ("flat", collate_flat(rows))):
        model.zero_grad()
        loss, metrics = causal(model, batch)
        loss.backward()
        found[kind] = (float(loss.detach()), metrics["count"], [p.grad.clone() for p in model.parameters()])
    assert found["flat"][1] == found["padded"][1] == sum(len(r["input_ids"]) - 1 for r in rows)
    assert found["flat"][0] == pytest.approx(found["padded"][0], rel=1e-5)
    for a, b in zip(found["flat"][2], found["padded"][2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_attention_dropout_is_honoured() -> None:
    config = LlamaConfig(**SHAPE, attention_dropout=0.5)
    model = AutoModelForCausalLM.from_config(config).train()
    batch = collate_flat([{"input_ids": list(range(2, 30)), "labels": list(range(2, 30))}] * 2)
    first, second = (float(causal(model, batch)[0].detach()) for _ in range(2))
    assert first != second
    model.eval()
    assert float(causal(model, batch)[0].detach()) == float(causal(model, batch)[0].detach())


def test_short_attention_in_bf16_is_that_of_the_kernel() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, heads, 17, 8, dtype=torch.bfloat16) for heads in (4, 2, 2))
    bias = torch.zeros(3, 1, 17, 17, dtype=torch.bfloat16).masked_fill(torch.rand(3, 1, 17, 17) < 0.2, -9.0)
    for mask, before in ((None, True), (bias, False)):
        wide = (x.float() for x in (query, key, value))
        wanted = scaled_dot_product_attention(
            *wide, None if mask is None else mask.float(), is_causal=before, scale=0.3, enable_gqa=True
        )
        found, _ = trainable(query, key, value, mask, before, How(0.3))
        torch.testing.assert_close(found.float(), wanted, rtol=3e-2, atol=3e-2)
