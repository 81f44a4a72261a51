"""Claim: a model that adds numbers of one and two digits teaches itself longer ones, from its own rationales that come
out right; asked with the answer as a hint it learns all lengths together, without it one after another (Zelikman et al.
2022, figure 4).

A small model from scratch is taught scratchpads of the known lengths, with and without a hint in the prompt, and sees a
few of the longer ones again and again, which stand for the demonstrations in the paper's prompts. `star`
then starts from it twice, with and without rationalisation.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from tutelage.core.config import StageConfig
from tutelage.core.rundir import RunDir
from tutelage.core.runtime import stream_seed
from tutelage.icl.star import arithmetic
from tutelage.icl.star.learn import encode_texts
from tutelage.icl.star.tasks import Arithmetic, measured_sums
from tutelage.model.hub import create_model, parameter_count, save_model
from tutelage.report.plots import Panel, save_figure
from tutelage.report.read import read_stage
from tutelage.stages import star
from tutelage.stages.star import StarConfig
from tutelage.studies.parts import word_tokenizer
from tutelage.text.loader import RowLoader
from tutelage.train.inner import part
from tutelage.train.loop import train
from tutelage.train.objectives import causal
from tutelage.train.optim import OptimConfig, Optimizers

ARMS = {"with": True, "without": False}
"""Folder of each run of `star` -> whether it rationalises."""


class StarStudyConfig(StageConfig):
    digits: str = "1-5"
    """Lengths that are asked."""
    known: str = "1-2"
    """Lengths whose scratchpads the base model is taught."""
    arms: tuple[Literal["with", "without"], ...] = ("with", "without")
    """Runs: with and without rationalisation."""
    scratchpad: Literal["remaining", "pairs"] = "remaining"
    """A line shows all digits still to be added, or the next pair alone."""
    model: str = "laptop-0.3m"
    """Preset of the model that is trained from scratch."""
    context: int = Field(256, ge=64)
    """Its context in tokens."""
    base_steps: int = Field(1200, ge=1)
    """Optimiser steps of the base model."""
    hints: float = Field(0.25, ge=0, le=1)
    """Share of its scratchpads whose prompt has the hint."""
    demonstrations: int = Field(100, ge=0)
    """Scratchpads of each longer length that it has seen (the paper's prompts show 10 of every length): from 0 nothing
    longer is ever solved, 30 give a slow staircase."""
    demonstrated: float = Field(0.2, ge=0, le=1)
    """Rows of them, over and over, as a share of the others."""
    base_rows: int = Field(40_000, ge=1)
    """Scratchpads that it is taught."""
    base_optimizer: OptimConfig = OptimConfig(name="muon", lr=3e-3, muon_lr=0.02)
    loops: int = Field(8, ge=1)
    """At most so many loops."""
    patience: int = Field(0, ge=0)
    """Stop when so many loops brought no gain; 0: never."""
    per_loop: int = Field(1500, ge=1)
    """Sums asked in a loop (the paper: 10,000)."""
    held_rows: int = Field(250, ge=1)
    """Sums that measure each loop, and as many at the end."""
    start_steps: int = Field(80, ge=1)
    """Optimiser steps of the first loop (the paper: 300)."""
    steady_steps: int = Field(20, ge=0)
    """So many more a loop (the paper: 20)."""
    from_base: bool = True
    """Every loop is fine-tuned from the base model."""
    batch_size: int = Field(64, ge=1)
    """Rows a step, of the base model too."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """The model is too small for bf16 to help."""
    optimizer: OptimConfig = OptimConfig(name="muon", lr=1e-3, muon_lr=5e-3)

    @model_validator(mode="after")
    def _fits(self) -> StarStudyConfig:
        known, asked = (arithmetic.digits_of(f"arithmetic:{some}") for some in (self.known, self.digits))
        if not set(known) <= set(asked):
            raise ValueError(f"known={self.known!r} is no part of digits={self.digits!r}")
        return self


def run(config: StarStudyConfig, run: RunDir) -> dict[str, Any]:
    """The base model, `star` from it in every arm, the figure; the summary has each arm's accuracies and times."""
    began = time.perf_counter()
    keys = ("seed", "digits", "known", "scratchpad", "model", "context", "base_steps", "hints", "base_rows",
            "demonstrations", "demonstrated",
            "batch_size", "held_rows", "precision")  # fmt: skip
    optimizer = config.base_optimizer.model_dump(mode="json")
    identity = {**{key: getattr(config, key) for key in keys}, "optimizer": optimizer}
    base = part(run, "base", identity, lambda inner: teach(config, inner))
    arms: dict[str, Any] = {name: part(run, name, _star(config, run, name).model_dump(mode="json", exclude={"out"}),
                       lambda inner: star.run(_star(config, run, name), inner)) for name in config.arms}  # noqa: B023 # fmt: skip
    save_figure(run.path, "study", [panel for name in config.arms for panel in _panels(config, run, name)], columns=2)
    return {"base": base, **arms, "seconds": round(time.perf_counter() - began, 1)}


def teach(config: StarStudyConfig, run: RunDir) -> dict[str, Any]:
    """The base model: a Qwen3 of the preset's shape that has seen scratchpads of the known lengths only, and none of
    the sums that measure."""
    tokenizer = word_tokenizer(arithmetic.WORDS)
    model: Any = create_model(config.model, tokenizer, config.context, config.seed)
    rows = encode_texts(taught_texts(config), tokenizer, config.context)
    last = train(
        model, causal, RowLoader(rows, batch_size=config.batch_size, seed=config.seed, pad_id=tokenizer.pad_token_id),
        Optimizers(model, config.base_optimizer), run, steps=config.base_steps, precision=config.precision,
        save_every=500, log_every=50,
    )  # fmt: skip
    save_model(model, tokenizer, run.path / "model")
    return {"parameters": parameter_count(model), "rows": len(rows), "loss": last["loss"], "training_seconds":
            last["seconds"]}  # fmt: skip


def taught_texts(config: StarStudyConfig) -> list[tuple[str, str]]:
    """(prompt, right scratchpad) of the known lengths, and the few demonstrations of the others again and again; a
    share of the prompts has the hint."""
    known = list(arithmetic.digits_of(f"arithmetic:{config.known}"))
    longer = [d for d in _asked(config) if d not in known]
    apart = {pair for some in measured_sums(_asked(config), config.held_rows, config.seed) for pair in some}
    pairs = arithmetic.training_sums(known, config.base_rows, config.seed, "base", apart)
    if longer and config.demonstrations:
        few = arithmetic.training_sums(longer, config.demonstrations * len(longer), config.seed, "few", apart)
        pairs += list(islice(cycle(few), round(config.demonstrated * len(pairs))))
    task = Arithmetic(_asked(config), config.scratchpad)
    random = np.random.default_rng(stream_seed(config.seed, "hints"))
    hinted = random.random(len(pairs)) < config.hints
    items = [task.item(pair) for pair in pairs]
    return [(str(task.prompt(item, [], bool(hint))), item.rationale) for item, hint in zip(items, hinted, strict=True)]


def _asked(config: StarStudyConfig) -> Sequence[int]:
    return arithmetic.digits_of(f"arithmetic:{config.digits}")


def _star(config: StarStudyConfig, run: RunDir, arm: str) -> StarConfig:
    keys = ("seed", "scratchpad", "loops", "patience", "per_loop", "held_rows", "start_steps", "steady_steps",
            "from_base", "batch_size", "precision", "optimizer")  # fmt: skip
    return StarConfig(
        model=str(run.path / "base"), data=f"arithmetic:{config.digits}", rationalise=ARMS[arm],
        **{key: getattr(config, key) for key in keys},
    )  # fmt: skip


def _panels(config: StarStudyConfig, run: RunDir, arm: str) -> list[Panel]:
    """Accuracy on held-out sums by length, and what of the training questions was solved and rationalised."""
    stage = read_stage(run.path / arm)
    lines = [(f"{d} digits", *stage.series(f"accuracy/{d}")) for d in _asked(config)]
    shares = [(label, *stage.series(key)) for key, label in (("solved", "solved"), ("rationalised", "rationalised"))]
    return [
        Panel(f"{arm} rationalisation: held-out sums", "loop", "accuracy", lines),
        Panel(f"{arm} rationalisation: training questions", "loop", "share", shares),
    ]
