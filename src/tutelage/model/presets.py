"""Shapes of models that are trained from scratch: decoders, masked LMs and encoder-decoders.

The ``laptop-*`` decoders are Qwen3 (rotary positions, grouped queries possible, SwiGLU, q/k norms). The others have the
architecture and the widths of the papers that `published` names; a preset says nothing of vocabulary and context, which
follow the tokenizer and the user (`published_config` gives the papers' own).
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from tutelage.core.errors import ConfigError
from tutelage.model.published import PUBLISHED

if TYPE_CHECKING:  # the list of presets is printed without waiting for these
    from transformers import PretrainedConfig

Shape = dict[str, Any]


def _qwen(width: int, layers: int, heads: int, inner: int) -> Shape:
    return {
        "family": "qwen3",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "intermediate_size": inner,
        "tie_word_embeddings": True,
    }


def _gpt(width: int, layers: int, heads: int, **more: Any) -> Shape:
    return {"family": "gpt2", "n_embd": width, "n_layer": layers, "n_head": heads, **more}


def _bert(family: str, width: int, layers: int, heads: int, **more: Any) -> Shape:
    return {
        "family": family,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        **({"type_vocab_size": 1, "layer_norm_eps": 1e-5} if family == "roberta" else {}),
        **more,
    }


def _t5(width: int, layers: int, heads: int, inner: int, head: int = 64, **more: Any) -> Shape:
    """`layers`: of the encoder, and as many of the decoder."""
    return {
        "family": "t5",
        "d_model": width,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "num_heads": heads,
        "d_kv": head,
        "d_ff": inner,
        **more,
    }


_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_BERT_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
# T5 1.1, of which Flan-T5 is tuned: a gated GELU, and an output layer of its own
_GATED: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}

PRESETS: dict[str, Shape] = {
    "laptop-0.3m": _qwen(64, 4, 2, 192),
    "laptop-1m": _qwen(128, 4, 4, 384),
    "laptop-2m": _qwen(192, 4, 6, 512),
    "laptop-5m": _qwen(256, 6, 8, 704),
    "shakespeare-0.8m": _qwen(128, 4, 4, 352),
    "laptop-bert-0.3m": _bert("bert", 64, 4, 2, **_BERT_NO_DROPOUT),
    "laptop-bert-1m": _bert("bert", 128, 4, 4, **_BERT_NO_DROPOUT),
    "laptop-roberta-1m": _bert("roberta", 128, 4, 4, **_BERT_NO_DROPOUT),
    "laptop-t5-0.6m": _t5(64, 4, 2, 128, 32, dropout_rate=0.0, **_GATED),
    "laptop-t5-1m": _t5(128, 2, 4, 256, 32, dropout_rate=0.0, **_GATED),
    "laptop-t5-2m": _t5(128, 4, 4, 256, 32, dropout_rate=0.0, **_GATED),
    "gpt": {**_gpt(768, 12, 12), "family": "openai-gpt"},
    "gpt2": _gpt(768, 12, 12),
    "gpt2-medium": _gpt(1024, 24, 16),
    "gpt2-large": _gpt(1280, 36, 20),
    "gpt2-xl": _gpt(1600, 48, 25),
    "gpt3-125m": _gpt(768, 12, 12, **_NO_DROPOUT),
    "gpt3-350m": _gpt(1024, 24, 16, **_NO_DROPOUT),
    "gpt3-760m": _gpt(1536, 24, 16, **_NO_DROPOUT),
    "gpt3-1.3b": _gpt(2048, 24, 16, **_NO_DROPOUT),
    "gpt3-2.7b": _gpt(2560, 32, 32, **_NO_DROPOUT),
    "gpt3-6.7b": _gpt(4096, 32, 32, **_NO_DROPOUT),
    "gpt3-13b": _gpt(5120, 40, 40, **_NO_DROPOUT),
    "gpt3-175b": _gpt(12288, 96, 96, **_NO_DROPOUT),
    "turing-nlg": _gpt(4256, 78, 28, **_NO_DROPOUT),
    # gated GELU as published; rotary positions and RMSNorm where LaMDA has T5's relative positions
    "lamda-pt": {**_qwen(8192, 64, 128, 65536), "family": "llama", "head_dim": 128, "hidden_act": "gelu"},
    "bert-base": _bert("bert", 768, 12, 12),
    "bert-large": _bert("bert", 1024, 24, 16),
    "roberta-base": _bert("roberta", 768, 12, 12),
    "roberta-large": _bert("roberta", 1024, 24, 16),
    "t5-small": _t5(512, 6, 8, 2048),
    "t5-base": _t5(768, 12, 12, 3072),
    "t5-large": _t5(1024, 24, 16, 4096),
    "t5-3b": _t5(1024, 24, 32, 16384, 128),
    "t5-11b": _t5(1024, 24, 128, 65536, 128),
    "flan-t5-small": _t5(512, 8, 6, 1024, **_GATED),
    "flan-t5-base": _t5(768, 12, 12, 2048, **_GATED),
    "flan-t5-large": _t5(1024, 24, 16, 2816, **_GATED),
    "flan-t5-xl": _t5(2048, 24, 32, 5120, **_GATED),
    "flan-t5-xxl": _t5(4096, 24, 64, 10240, **_GATED),
}
"""Preset name -> keyword arguments of its config class, beside ``family``."""

CLASSES = {
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "openai-gpt": ("OpenAIGPTConfig", "OpenAIGPTLMHeadModel"),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel"),
    "bert": ("BertConfig", "BertForMaskedLM"),
    "roberta": ("RobertaConfig", "RobertaForMaskedLM"),
    "t5": ("T5Config", "T5ForConditionalGeneration"),
}
"""Family -> the config's class in transformers, and the model's."""
_KINDS = {"bert": "masked LM", "roberta": "masked LM", "t5": "encoder-decoder"}
_LENGTH = {"gpt2": "n_positions", "openai-gpt": "n_positions", "t5": "n_positions"}


def kind_of(name: str) -> str:
    """ "decoder", "masked LM" or "encoder-decoder"."""
    return _KINDS.get(preset_of(name)["family"], "decoder")


def words(name: str) -> str:
    """A preset's shape in words."""
    shape = PRESETS[name]
    keys = {"gpt": ("n_embd", "n_layer", "n_head"), "t5": ("d_model", "num_layers", "num_heads")}
    kind = "t5" if shape["family"] == "t5" else "gpt" if "n_embd" in shape else ""
    width, layers, heads = (shape[k] for k in keys.get(kind, ("hidden_size", "num_hidden_layers",
                                                              "num_attention_heads")))  # fmt: skip
    both = f"{layers}+{layers}" if kind == "t5" else str(layers)
    return f"width {width}, {both} layers, {heads} heads"


def preset_of(name: str) -> Shape:
    """The shape of a preset (``preset:`` may precede the name); ConfigError for an unknown one."""
    name = name.removeprefix("preset:")
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown model preset {name!r}{hint} Known: {', '.join(PRESETS)}")
    return dict(PRESETS[name])


def build_config(name: str, vocab_size: int, max_length: int, **overrides: Any) -> PretrainedConfig:
    """The config of preset ``name`` for a vocabulary of ``vocab_size`` tokens and contexts of ``max_length`` tokens.

    ``overrides`` replace single keys of the config. Raises ConfigError for an unknown preset or an absurd size.
    """
    import transformers

    shape = preset_of(name)
    if vocab_size < 1 or max_length < 1:
        raise ConfigError(f"vocab_size and max_length must be positive, got {vocab_size} and {max_length}")
    family = shape.pop("family")
    config, model = CLASSES[family]
    size = {"vocab_size": vocab_size, _LENGTH.get(family, "max_position_embeddings"): max_length}
    given = {"architectures": [model], **shape, **size, **overrides}
    if family == "roberta" and "max_position_embeddings" not in overrides:
        # its positions begin behind the padding id
        given["max_position_embeddings"] = max_length + int(given.get("pad_token_id", 1)) + 1
    if family not in _KINDS:
        given.pop("architectures")  # written when the model is saved
    found: PretrainedConfig = getattr(transformers, config)(**given)
    return found


def published_config(name: str) -> PretrainedConfig:
    """The config of a published model with its own vocabulary and context; ConfigError if there is no such model."""
    name = name.removeprefix("preset:")
    preset_of(name)
    if name not in PUBLISHED:
        raise ConfigError(f"{name!r} is a size of ours and was published nowhere; published: {', '.join(PUBLISHED)}")
    return build_config(name, PUBLISHED[name].vocab_size, PUBLISHED[name].context)
