"""Tiny random models of many families, and a tokenizer of nothing but numbers.

Their weights are larger than initialisations, whose attention is all but uniform: a wrong mask, window, sink or cache
must change the answers.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

VOCAB = 96
SIZE = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MORE = {"intermediate_size": 48, "max_position_embeddings": 128, "num_key_value_heads": 2}
FOUR = {**SIZE, "num_hidden_layers": 4}
SLIDE = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
PLANNED: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "llama": ("LlamaConfig", {**SIZE, **MORE}),
    "qwen3": ("Qwen3Config", {**SIZE, **MORE, "head_dim": 16, "num_key_value_heads": 1}),
    "mistral": ("MistralConfig", {**SIZE, **MORE, "sliding_window": 8}),
    "gemma2": ("Gemma2Config", {**SIZE, **MORE, "head_dim": 16, "sliding_window": 8, "attn_logit_softcapping": 2.0,
                                "final_logit_softcapping": 9.0, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3TextConfig", {**FOUR, **MORE, "head_dim": 16, "sliding_window": 8, "layer_types": SLIDE}),
    "neox": ("GPTNeoXConfig", {**SIZE, "intermediate_size": 48, "max_position_embeddings": 128}),
    "gpt_oss": ("GptOssConfig", {**SIZE, **MORE, "head_dim": 16, "sliding_window": 8, "num_local_experts": 2,
                                 "num_experts_per_tok": 1}),
    "opt": ("OPTConfig", {**SIZE, "ffn_dim": 48, "max_position_embeddings": 128, "word_embed_proj_dim": 32}),
}  # fmt: skip
FALL_BACK: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("BloomConfig", {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 2}),
    "falcon": ("FalconConfig", {**SIZE, "alibi": True, "new_decoder_architecture": False}),
    "mamba": ("MambaConfig", {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2}),
    "mamba2": ("Mamba2Config", {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 8,
                                "head_dim": 8, "n_groups": 2}),
    "lfm2": ("Lfm2Config", {**SIZE, **MORE, "layer_types": ["conv", "full_attention"]}),
    "recurrent_gemma": ("RecurrentGemmaConfig", {**SIZE, "num_hidden_layers": 3, "intermediate_size": 96,
                                                 "lru_width": 32, "attention_window_size": 64}),
    "qwen3_next": ("Qwen3NextConfig", {**FOUR, **MORE, "head_dim": 16, "linear_num_key_heads": 2,
                                       "linear_num_value_heads": 4, "linear_key_head_dim": 8,
                                       "linear_value_head_dim": 8, "num_experts": 2, "num_experts_per_tok": 1,
                                       "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}),
    "jamba": ("JambaConfig", {**FOUR, **MORE, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2,
                              "mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False}),
}  # fmt: skip
"""Those that cannot follow a plan: alibi, recurrent, hybrid."""


class Numbers:
    """A tokenizer whose texts are the ids themselves."""

    pad_token_id, eos_token_id, bos_token_id = 0, 1, None

    def __len__(self) -> int:
        return VOCAB

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(f" {i}" for i in ids)


def build(name: str, sharp: float = 8.0, **changes: Any) -> Any:
    """A random model of the family. sharp: what the head's weights are multiplied by, for clear greedy choices."""
    kind, shape = (PLANNED | FALL_BACK)[name]
    config = getattr(transformers, kind)(**{**shape, **changes})
    config.pad_token_id, config.eos_token_id, config.bos_token_id = 0, 1, None
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    model.family = name
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.dim() > 1 and "embed" not in key and "lm_head" not in key:
                weight.mul_(4)
            if key.endswith("sinks"):
                weight.normal_()
        model.get_output_embeddings().weight.mul_(sharp)
    return model
