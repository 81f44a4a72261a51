"""Claim: in-context learning is implicit Bayesian inference (Xie et al. 2021).

A small transformer is trained on documents of a mixture of HMMs. On prompts, which look like no document, its accuracy
rises with the number of examples, because they tell which HMM the prompt comes from. Beside it stand the exact
posterior (ginc_bayes.py), the random baseline, and the ablation whose pretraining knew one HMM only: nothing to infer,
so more examples do not help.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from tutelage.core.config import StageConfig
from tutelage.core.rundir import RunDir
from tutelage.core.runtime import stream_seed
from tutelage.core.stats import wilson
from tutelage.model.hub import load_model
from tutelage.report.plots import Panel, save_figure
from tutelage.studies.ginc_bayes import ideal_loss, labels, pretraining_answers, prompt_answers
from tutelage.studies.ginc_train import model_answers, pretrain
from tutelage.studies.ginc_world import Ints, Prompts, World, make_world, sample_prompts
from tutelage.text.shards import TokenShards
from tutelage.train.inner import part
from tutelage.train.optim import OptimConfig


class GincConfig(StageConfig):
    vocabulary: int = Field(150, ge=3)
    """Words of the world, the delimiter included (the paper: 50, 100, 150)."""
    world_seed: int = 1111
    """Draws the HMMs; 1111 gives the authors' own."""
    self_value: float = Field(0.9, ge=0, le=1)
    """How much the value chain stays where it is; 0 is the paper's "fast changing" ablation."""
    lengths: tuple[int, ...] = (3, 5)
    """Tokens of an example, its label included (the paper: 3, 5, 8, 10)."""
    examples: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32, 64)
    """Numbers of in-context examples at which accuracy is measured."""
    prompts: int = Field(1000, ge=1)
    """Prompts of each length (the paper: 2,500)."""
    model: str = "laptop-1m"
    """Preset of the transformer that is trained from scratch."""
    steps: int = Field(1500, ge=1)
    """Optimiser steps of the mixture's model."""
    ablation_steps: int = Field(1500, ge=0)
    """Optimiser steps of the model that knows one HMM only; 0 leaves the ablation out."""
    batch_size: int = Field(8, ge=1)
    """Blocks per step."""
    block_size: int = Field(392, ge=2)
    """Tokens of a training block; the longest prompt must fit."""
    lapses: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (1e-4, 1e-2, 1e-1)
    """Chances that a chain jumps anywhere, for the posterior of pretraining: prompts jump as no document does."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU and on a CPU that was measured to be quicker with it."""
    save_every: int = Field(250, ge=0)
    """Steps between checkpoints."""
    optimizer: OptimConfig = OptimConfig(name="muon", lr=3e-3, muon_lr=0.02, weight_decay=0.0)

    @model_validator(mode="after")
    def _fits(self) -> GincConfig:
        if not self.lengths or not self.examples or min(self.lengths) < 2 or min(self.examples) < 0:
            raise ValueError(f"lengths={self.lengths}, examples={self.examples}: expected lengths >= 2, examples >= 0")
        longest = max(self.examples) * (max(self.lengths) + 1) + max(self.lengths) - 1
        if longest > self.block_size:
            raise ValueError(
                f"block_size={self.block_size}: {max(self.examples)} examples of {max(self.lengths)} tokens take "
                f"{longest}; raise block_size, or lower examples or lengths"
            )
        return self


def run(config: GincConfig, run: RunDir) -> dict[str, Any]:
    """Train both models, answer the prompts in every way, write accuracies with 95% Wilson intervals and the figure."""
    whole = make_world(config.vocabulary, seed=config.world_seed, self_value=config.self_value)
    world = whole.only(range(whole.hmms // 2))
    trainings = {"model": _train(config, run, "mixture", world, config.steps)}
    if config.ablation_steps:
        trainings["one_hmm"] = _train(config, run, "one_hmm", world.only([0]), config.ablation_steps)
    run.truncate_metrics(-1)  # the accuracies are all measured anew
    tables = {k: _accuracies(config, run, world, k, list(trainings)) for k in config.lengths}
    rows = [
        {"step": n, **{f"{name}_k{k}": tables[k][name][i]["accuracy"] for k in tables for name in tables[k]}}
        for i, n in enumerate(config.examples)
    ]
    for row in rows:
        run.log(row)
    save_figure(run.path, "study", [_panel(k, tables[k], config.examples) for k in tables])
    return {**_verdict(config, tables), "trainings": trainings, "accuracy": {str(k): t for k, t in tables.items()}}


def _train(config: GincConfig, run: RunDir, name: str, world: World, steps: int) -> dict[str, Any]:
    keys = ("model", "batch_size", "block_size", "precision", "save_every", "seed")
    chosen = {key: getattr(config, key) for key in keys}
    identity = {**chosen, "steps": steps, "optimizer": config.optimizer.model_dump(mode="json"),
                "world": [config.vocabulary, config.world_seed, config.self_value, world.hmms]}  # fmt: skip
    made = part(run, name, identity, lambda inner: pretrain(world, inner, steps=steps, optimizer=config.optimizer,
                                                            **chosen))  # fmt: skip
    held = TokenShards(run.path / name / "validation")
    blocks = held.read(0, held.tokens).reshape(-1, config.block_size)
    return {**made, "ideal_val_loss": ideal_loss(world, blocks[: 24_000 // config.block_size])}  # what text_loss reads


Table = dict[str, list[dict[str, float]]]
"""Predictor -> a row for each number of examples."""


def _accuracies(config: GincConfig, run: RunDir, world: World, length: int, models: list[str]) -> Table:
    """Every predictor's accuracy on one set of prompts."""
    counts = list(config.examples)
    seed = stream_seed(config.seed, "prompts", length)
    prompts = sample_prompts(world, config.prompts, max(counts), length, seed)
    truth = np.stack([labels(world, prompts, n) for n in counts], 1)
    answers: dict[str, Ints] = {}
    for name in models:
        net, _ = load_model(run.path / ("mixture" if name == "model" else name))
        answers[name] = model_answers(net, prompts, counts, f"{run.path.name} {name} k={length}")
    answers.update(_ideal(config, run, world, prompts, "one_hmm" in models))
    table = {name: [_row(n, given[:, i] == truth[:, i]) for i, n in enumerate(counts)] for name, given in
             answers.items()}  # fmt: skip
    possible = [_row(n, answers["bayes_no_lapse"][:, i] >= 0) for i, n in enumerate(counts)]
    return {**table, "possible": possible, **_baselines(world, truth, counts)}


def _ideal(config: GincConfig, run: RunDir, world: World, prompts: Prompts, ablation: bool) -> dict[str, Ints]:
    """The exact posteriors' answers [P, counts]; without a lapse, -1 for what no document can hold."""
    counts = list(config.examples)
    positions = [prompts.query(n) for n in counts]
    words = f"{run.path.name} posterior k={prompts.length}"
    out = {}
    for lapse in (0.0, *config.lapses):
        key = f"bayes_pretraining_{lapse:g}" if lapse else "bayes_no_lapse"
        out[key] = pretraining_answers(world, prompts.tokens, positions, lapse, f"{words} lapse={lapse:g}")
        if lapse and ablation:
            alone = world.only([0])
            name = f"{words} one HMM lapse={lapse:g}"
            out[f"bayes_one_hmm_{lapse:g}"] = pretraining_answers(alone, prompts.tokens, positions, lapse, name)
    out["bayes_prompt"], out["bayes_label"] = prompt_answers(world, prompts, counts, f"{words} prompts")
    return out


def _row(examples: int, right: Any) -> dict[str, float]:
    low, high = wilson(int(right.sum()), len(right))
    return {"examples": examples, "right": int(right.sum()), "prompts": len(right), "accuracy": float(right.mean()),
            "low": low, "high": high}  # fmt: skip


def _baselines(world: World, truth: Ints, counts: list[int]) -> Table:
    """A uniformly random word, and the word that is most often the label."""
    most = np.bincount(truth.reshape(-1)).argmax()
    guess = 1 / world.vocabulary
    return {
        "random": [{"examples": n, "accuracy": guess, "low": guess, "high": guess} for n in counts],
        "most_frequent": [_row(n, truth[:, i] == most) for i, n in enumerate(counts)],
    }


def _verdict(config: GincConfig, tables: Mapping[int, Table]) -> dict[str, Any]:
    """The claim in numbers: for each length, whether the intervals of the fewest and the most examples are disjoint."""
    first, last = (config.examples.index(pick(config.examples)) for pick in (min, max))
    out: dict[str, Any] = {}
    for k, table in tables.items():
        for name in [name for name in ("model", "one_hmm") if name in table]:
            few, many = table[name][first], table[name][last]
            out[f"{name}_k{k}_few"], out[f"{name}_k{k}_many"] = few["accuracy"], many["accuracy"]
            if name == "one_hmm":
                out[f"one_hmm_flat_k{k}"] = bool(many["low"] <= few["high"] and few["low"] <= many["high"])
            elif name == "model":
                out[f"rises_k{k}"] = bool(many["low"] > few["high"])
    return out


NAMES = {
    "model": "transformer",
    "one_hmm": "transformer, one HMM in pretraining",
    "bayes_label": "posterior of the prompts",
    "random": "random word",
}
"""What the figure shows beside the posteriors of pretraining, and its words for it."""


def _panel(length: int, table: Table, counts: tuple[int, ...]) -> Panel:
    x = [float(n) for n in counts]
    names = {**NAMES, **{name: f"posterior of pretraining, lapse {name.rpartition('_')[2]}" for name in table
                         if name.startswith("bayes_pretraining")}}  # fmt: skip
    shown = {words: table[name] for name, words in names.items() if name in table}
    lines = [(words, x, [row["accuracy"] for row in rows]) for words, rows in shown.items()]
    bands = [([row["low"] for row in rows], [row["high"] for row in rows]) for rows in shown.values()]
    return Panel(f"GINC, examples of {length} tokens", "examples in the prompt", "accuracy", lines, bands, "doubling")
