"""Claim: induction heads form abruptly, and with them the loss on what has occurred before drops (Olsson et al. 2022).

Without model=, a two-layer attention-only transformer is trained on repeated random sequences, where nothing but the
context can help, and its loss is laid beside its heads' scores. With model=, a trained model's heads are scored.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from tutelage.core.config import StageConfig
from tutelage.core.errors import DataError
from tutelage.core.rundir import RunDir
from tutelage.core.runtime import stream_seed
from tutelage.model.hub import create_model, load_model, parameter_count, save_model
from tutelage.report.plots import Panel, save_figure
from tutelage.report.read import StageRun, read_stage
from tutelage.studies.heads import (
    HeadScores,
    head_scores,
    icl_score,
    repeated_tokens,
    token_losses,
    usual_tokens,
)  # fmt: skip
from tutelage.studies.parts import word_tokenizer
from tutelage.train.loop import train
from tutelage.train.objectives import causal
from tutelage.train.optim import OptimConfig, Optimizers
from tutelage.train.sources import texts

LENGTH, REPEATS = 25, 4
"""Of the sequences on which heads are scored (Olsson et al.)."""
CONTEXT = LENGTH * REPEATS + 1
WINDOW = 2
"""The loss falls fastest and the score rises fastest within so many evaluations of each other: "they coincide"."""


class InductionConfig(StageConfig):
    model: str | None = None
    """A folder or hub id whose heads are scored; without it a small model is trained from scratch."""
    data: str | None = None
    """Text on which the given model's in-context-learning score is measured."""
    sequences: int = Field(10, ge=1)
    """Random sequences on which heads are scored."""
    vocabulary: int = Field(64, ge=LENGTH)
    """Words of the model trained here."""
    width: int = Field(64, ge=8)
    """Its width."""
    layers: int = Field(2, ge=1)
    """Its layers. One layer cannot hold an induction head: it takes a head that reads what another has written."""
    heads: int = Field(4, ge=1)
    """Heads a layer."""
    head_width: int = Field(64, ge=2, multiple_of=2)
    """Channels of a head. Queries and keys are normed, so a head of few channels cannot attend sharply."""
    attention_only: bool = True
    """The feed-forward layers write nothing (their last matrix is 0 and stays so)."""
    steps: int = Field(2000, ge=1)
    """Optimiser steps."""
    batch_size: int = Field(32, ge=1)
    """Sequences a step."""
    eval_every: int = Field(25, ge=1)
    """Steps between the points of the curves."""
    save_every: int = Field(500, ge=0)
    """Steps between checkpoints."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """The model is too small for bf16 to help."""
    optimizer: OptimConfig = OptimConfig(name="adamw", lr=3e-3, weight_decay=0.01)

    @model_validator(mode="after")
    def _fits(self) -> InductionConfig:
        if self.data and not self.model:
            raise ValueError(f"data={self.data!r} without model=: text is for measuring a given model")
        return self


def run(config: InductionConfig, run: RunDir) -> dict[str, Any]:
    return score_model(config) if config.model else train_model(config, run)


class RepeatedSequences:
    """Endless batches {"input_ids", "labels"} [B, CONTEXT]: bos, then random words repeated with a period.

    Every row has its own period (10 to 50): with one for all, a head that looks a fixed distance back would do.
    """

    def __init__(self, vocabulary: int, batch_size: int, first: int, seed: int) -> None:
        self.vocabulary, self.batch_size, self.first, self.seed, self.position = vocabulary, batch_size, first, seed, 0

    def __next__(self) -> dict[str, Tensor]:
        random = np.random.default_rng(stream_seed(self.seed, "repeated", self.position))
        self.position += 1
        periods = random.integers(10, (CONTEXT - 1) // 2 + 1, size=self.batch_size)
        words = random.integers(self.vocabulary, size=(self.batch_size, CONTEXT - 1))
        words = np.take_along_axis(words, np.arange(CONTEXT - 1)[None] % periods[:, None], axis=1)
        ids = torch.from_numpy(np.insert(words, 0, self.first, axis=1))
        return {"input_ids": ids, "labels": ids.clone()}

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = int(state["position"])


def build_model(config: InductionConfig, tokenizer: Any) -> Any:
    """A Qwen3 of that shape (a transformers model like any other); attention-only by a frozen zero matrix."""
    model: Any = create_model(
        "laptop-0.3m", tokenizer, CONTEXT, config.seed, hidden_size=config.width, num_hidden_layers=config.layers,
        num_attention_heads=config.heads, num_key_value_heads=config.heads, head_dim=config.head_width,
        intermediate_size=8 if config.attention_only else 4 * config.width,
    )  # fmt: skip
    if config.attention_only:
        for layer in model.model.layers:
            layer.mlp.requires_grad_(False)
            layer.mlp.down_proj.weight.data.zero_()
    return model


def train_model(config: InductionConfig, run: RunDir) -> dict[str, Any]:
    """Train, with losses and scores at every evaluation; the summary says whether drop and rise coincide."""
    tokenizer = word_tokenizer(f"w{i}" for i in range(config.vocabulary))
    first = tokenizer.bos_token_id
    model = build_model(config, tokenizer)
    probe = repeated_tokens(range(config.vocabulary), config.sequences, LENGTH, REPEATS, first, config.seed)

    def evaluate() -> dict[str, float]:
        scores = head_scores(model, probe, copies=False)
        return {**repeat_losses(token_losses(model, probe)), "prefix_matching": float(scores.prefix.max()),
                "previous_token": float(scores.previous.max())}  # fmt: skip

    train(
        model, causal, RepeatedSequences(config.vocabulary, config.batch_size, first, config.seed),
        Optimizers(model, config.optimizer), run, steps=config.steps, precision=config.precision, evaluate=evaluate,
        eval_every=config.eval_every, save_every=config.save_every, log_every=config.eval_every,
    )  # fmt: skip
    save_model(model, tokenizer, run.path / "model")
    run.sync()
    stage = read_stage(run.path)
    save_figure(run.path, "study", _panels(stage))
    steps, losses = stage.series("loss_repeated")
    out = coincidence(steps, losses, stage.series("prefix_matching")[1], WINDOW)
    out["training_seconds"] = stage.rows[-1]["seconds"]
    return {**out, "parameters": parameter_count(model), **_scored(model, probe)}


def repeat_losses(losses_BT: Tensor) -> dict[str, float]:
    """Nats a token of a probe's first round, in which nothing can be known, and of the rounds after it."""
    return {"loss_first": float(losses_BT[:, :LENGTH].mean()), "loss_repeated": float(losses_BT[:, LENGTH:].mean())}


def coincidence(
    steps: Sequence[float], losses: Sequence[float], scores: Sequence[float], window: int
) -> dict[str, Any]:
    """Where the loss falls fastest and the score rises fastest, and whether that is within `window` evaluations.

    Both between consecutive evaluations (the middle of the two steps is given); False if the loss never falls or the
    score never rises. The half-way steps, at which each first has half of its whole change behind it, stand beside.
    """
    if len(steps) < 2:
        return {"coincides": False}
    fall, rise = -np.diff(losses), np.diff(scores)
    at = [int(np.argmax(change)) for change in (fall, rise)]
    middle = [(steps[i] + steps[i + 1]) / 2 for i in at]
    half = [next((step for step, value in zip(steps, curve) if (value - curve[0]) / (curve[-1] - curve[0]) >= 0.5),
                 steps[-1]) if curve[-1] != curve[0] else steps[-1] for curve in (losses, scores)]  # fmt: skip
    return {
        "coincides": bool(abs(at[0] - at[1]) <= window and fall[at[0]] > 0 and rise[at[1]] > 0),
        "drop_step": middle[0], "rise_step": middle[1], "drop_half_step": half[0], "rise_half_step": half[1],
    }  # fmt: skip


def _scored(model: Any, probe: Tensor) -> dict[str, Any]:
    """The best head's scores, both losses, and a table of all heads."""
    scores: HeadScores = head_scores(model, probe)
    rows, losses = scores.rows(), token_losses(model, probe)
    best = {f"best_{key}" if key in ("layer", "head") else key: value for key, value in rows[0].items()}
    return {**best, **repeat_losses(losses), "icl_score_repeated": icl_score(losses), "heads": rows}


def score_model(config: InductionConfig) -> dict[str, Any]:
    """Scores of a trained model's heads on repeated random tokens and, with data=, its score on real text."""
    model, tokenizer = load_model(str(config.model))
    probe = repeated_tokens(
        usual_tokens(tokenizer), config.sequences, LENGTH, REPEATS, tokenizer.bos_token_id, config.seed
    )
    return {**_scored(model, probe), **(_on_text(config, model, tokenizer) if config.data else {})}


def _on_text(config: InductionConfig, model: Any, tokenizer: Any, most: int = 64) -> dict[str, Any]:
    """The in-context-learning score over at most `most` contexts (of at most 512 tokens) of the text's documents one
    behind another, as they stand in pretraining."""
    context = min(512, int(getattr(model.config, "max_position_embeddings", 512)))
    stream: list[int] = []
    for text in texts(str(config.data), "all", sys.maxsize):
        stream += tokenizer(text)["input_ids"]
        if len(stream) >= most * context:
            break
    count = min(most, len(stream) // context)
    if not count:
        raise DataError(f"{config.data}: {len(stream)} tokens, fewer than one context of {context}; give more text")
    blocks = torch.tensor(stream[: count * context]).view(count, context)
    losses = torch.cat([token_losses(model, some) for some in blocks.split(8)])
    return {"icl_score_text": icl_score(losses), "loss_text": float(losses.mean()), "context": context,
            "contexts": count}  # fmt: skip


def _panels(stage: StageRun) -> list[Panel]:
    """Loss, scores."""
    losses = {"loss_first": "first round", "loss_repeated": "later rounds"}
    scores = {"prefix_matching": "prefix matching, best head", "previous_token": "previous token, best head"}
    return [
        Panel("repeated random words", "step", "nats a token", [(v, *stage.series(k)) for k, v in losses.items()]),
        Panel("attention heads", "step", "score", [(v, *stage.series(k)) for k, v in scores.items()]),
    ]
