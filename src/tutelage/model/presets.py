"""Shapes of models that are trained from scratch.

The ``laptop-*`` presets are Qwen3 (rotary positions, grouped queries possible, SwiGLU, q/k norms); the ``gpt*``
presets are GPT-2's architecture with the widths of the GPT-2 and GPT-3 papers (GPT-3 paper, table 2.1).
"""

from __future__ import annotations

from typing import Any

from transformers import GPT2Config, PretrainedConfig, Qwen3Config

from tutelage.core.errors import ConfigError


def _qwen(width: int, layers: int, heads: int, inner: int) -> dict[str, Any]:
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


def _gpt2(width: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {"family": "gpt2", "n_embd": width, "n_layer": layers, "n_head": heads, **more}


_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

PRESETS: dict[str, dict[str, Any]] = {
    "laptop-0.3m": _qwen(64, 4, 2, 192),
    "laptop-1m": _qwen(128, 4, 4, 384),
    "laptop-2m": _qwen(192, 4, 6, 512),
    "laptop-5m": _qwen(256, 6, 8, 704),
    "shakespeare-0.8m": _qwen(128, 4, 4, 352),
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "gpt3-125m": _gpt2(768, 12, 12, **_NO_DROPOUT),
    "gpt3-350m": _gpt2(1024, 24, 16, **_NO_DROPOUT),
    "gpt3-760m": _gpt2(1536, 24, 16, **_NO_DROPOUT),
    "gpt3-1.3b": _gpt2(2048, 24, 16, **_NO_DROPOUT),
    "gpt3-2.7b": _gpt2(2560, 32, 32, **_NO_DROPOUT),
    "gpt3-6.7b": _gpt2(4096, 32, 32, **_NO_DROPOUT),
    "gpt3-13b": _gpt2(5120, 40, 40, **_NO_DROPOUT),
    "gpt3-175b": _gpt2(12288, 96, 96, **_NO_DROPOUT),
}
"""Preset name -> keyword arguments of its config class, beside ``family``."""


def table() -> list[tuple[str, str, str]]:
    """(name, family, size in words) of every preset, smallest first as they are listed."""
    out = []
    for name, shape in PRESETS.items():
        gpt = shape["family"] == "gpt2"
        width, layers, heads = (
            shape[key] for key in (("n_embd", "n_layer", "n_head") if gpt else ("hidden_size", "num_hidden_layers",
                                                                             "num_attention_heads"))
        )  # fmt: skip
        out.append((name, shape["family"], f"width {width}, {layers} layers, {heads} heads"))
    return out


def build_config(name: str, vocab_size: int, max_length: int, **overrides: Any) -> PretrainedConfig:
    """The config of preset ``name`` for a vocabulary of ``vocab_size`` tokens and contexts of ``max_length`` tokens.

    ``overrides`` replace single keys of the config. Raises ConfigError for an unknown preset or an absurd size.
    """
    name = name.removeprefix("preset:")
    if name not in PRESETS:
        import difflib

        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown model preset {name!r}{hint} Known: {', '.join(PRESETS)}")
    if vocab_size < 1 or max_length < 1:
        raise ConfigError(f"vocab_size and max_length must be positive, got {vocab_size} and {max_length}")
    shape = dict(PRESETS[name])
    family = shape.pop("family")
    if family == "gpt2":
        return GPT2Config(**{**shape, "vocab_size": vocab_size, "n_positions": max_length, **overrides})
    return Qwen3Config(
        **{**shape, "vocab_size": vocab_size, "max_position_embeddings": max_length, "use_cache": True, **overrides}
    )
