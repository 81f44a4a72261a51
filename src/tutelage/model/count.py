"""Counting: the parameters of a config on the meta device (no memory, whatever the size), and FLOPs of a live model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForPreTraining

from tutelage.model.hub import new_model, parameter_count
from tutelage.model.kinds import AUTO, config_kind
from tutelage.model.presets import published_config
from tutelage.model.published import PUBLISHED


def count_parameters(name: str) -> int:
    """Parameters of the published model that preset `name` is: of the part that its published figure counts.

    BERT with its pretraining heads, next sentence included; tied weights once, where the figure does not count the
    output embedding apart.
    """
    config = published_config(name)
    bert = config.model_type == "bert"
    with torch.device("meta"):
        model = new_model(config, AutoModelForPreTraining if bert else AUTO[config_kind(config)])
    embedding = model.get_input_embeddings().weight.numel()
    counted = PUBLISHED[name.removeprefix("preset:")].counted
    return parameter_count(model) + {"all": 0, "without embeddings": -embedding}.get(counted, embedding)


def training_flops(loss: Callable[[], Tensor]) -> int:
    """FLOPs of a forward and a backward pass, as torch counts them while they run: those of matrix products and of
    attention, 2 for each multiplication with its addition. Gradients are left on the parameters."""
    with FlopCounterMode(display=False) as counter:
        loss().backward()
    return int(counter.get_total_flops())
