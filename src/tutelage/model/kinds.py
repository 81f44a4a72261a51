"""Which of three kinds a model is: a causal LM, a masked LM, or an encoder-decoder. By the names of its classes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Literal

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from tutelage.model.forward import plain_model

Kind = Literal["causal", "masked", "seq2seq"]
WORDS: dict[Kind, str] = {"causal": "a causal LM", "masked": "a masked LM", "seq2seq": "an encoder-decoder"}
AUTO: dict[Kind, Any] = {
    "causal": AutoModelForCausalLM,
    "masked": AutoModelForMaskedLM,
    "seq2seq": AutoModelForSeq2SeqLM,
}


def _names(mapping: Any) -> frozenset[str]:
    return frozenset(name for value in mapping.values() for name in ((value,) if isinstance(value, str) else value))


_CAUSAL = _names(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
_SEQ2SEQ = _names(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES) - _CAUSAL
# XLM and Flaubert: one class for both
_EITHER = {"XLMWithLMHeadModel", "FlaubertWithLMHeadModel"}
# BERT's first checkpoints name the class that they were trained with, which has the masked LM's head too
_MASKED = (_names(MODEL_FOR_MASKED_LM_MAPPING_NAMES) | {"BertForPreTraining"}) - _CAUSAL - _SEQ2SEQ


def _kind(names: Iterable[str], config: Any) -> Kind:
    found = set(names)
    if getattr(config, "is_encoder_decoder", False) and found & _SEQ2SEQ:
        return "seq2seq"
    if found & _EITHER:
        return "causal" if getattr(config, "causal", False) else "masked"
    return "masked" if found & _MASKED else "causal"


def model_kind(model: Any) -> Kind:
    """The kind of a live model (inside a peft wrapper or not); "causal" for a class that transformers does not list."""
    plain = plain_model(model)
    names = (base.__name__ for base in type(plain).__mro__)
    return _kind(names, plain.config)


def config_kind(config: Any) -> Kind:
    """The kind that a config's ``architectures`` name; "causal" if there are none."""
    return _kind(getattr(config, "architectures", None) or (), config)


def stored_kind(source: str | os.PathLike[str]) -> Kind:
    """The kind of the model in a folder or under a hub id, by its config.json alone."""
    return config_kind(AutoConfig.from_pretrained(source))
