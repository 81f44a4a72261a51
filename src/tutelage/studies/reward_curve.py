"""Claim: with more comparisons and a bigger model, a reward model comes to agree with one person as people agree with
one another (Stiennon et al. 2020, fig. 6; InstructGPT: its reward model follows 72.4% of its labellers' comparisons,
sec. 4.1, who agree with one another on 72.6%, sec. 3.4).

Reward models are trained on nested subsets of the comparisons, from language models of several sizes, and each is laid
beside the people on the same held-out prompts, counted as one more person. On the embedded world people are simulated
and the true scores are known too. Every cell is a run of its own: interrupted, the same command goes on.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from tutelage.core.atomic import write_atomic
from tutelage.core.config import StageConfig, build
from tutelage.core.rundir import RunDir
from tutelage.model.hub import load_model, parameter_count
from tutelage.report.plots import Panel, save_figure
from tutelage.report.reward import read_report
from tutelage.schoolroom.annotators import panel
from tutelage.schoolroom.rows import ranking_rows
from tutelage.stages import prepare, pretrain, reward, sft, tokenizer
from tutelage.studies.parts import stage
from tutelage.text.rankings import join_annotators
from tutelage.train.optim import OptimConfig
from tutelage.train.reward_report import better_pairs
from tutelage.train.sources import is_world, rankings, world

Rows = list[dict[str, Any]]
BOUNDS = ("", "_low", "_high")
SFT_OPTIMIZER = {"name": "muon", "lr": 4e-3, "muon_lr": 0.01, "decay": 0.7}
"""That of recipes/demo.toml."""


class RewardCurveConfig(StageConfig):
    data: str = "schoolroom:demo"
    """Rankings: a file or folder, the run directory of `rank`, or the embedded world with simulated people."""
    held_out: str | None = None
    """What is measured on: another file or folder; else a tenth of the questions."""
    models: tuple[str, ...] = ("preset:laptop-0.3m", "preset:laptop-1m", "preset:laptop-2m")
    """The language models that reward models begin from. On the embedded world a preset is first pretrained and
    fine-tuned here; other data needs trained models."""
    prompts: tuple[int, ...] = (25, 100, 400, 1600)
    """Numbers of training prompts; a smaller set is part of every larger one."""
    seeds: int = Field(1, ge=1)
    """Orders of the training prompts and initial heads."""
    held_rows: int = Field(300, ge=1)
    """At most this many held-out prompts."""
    responses: int = Field(4, ge=2)
    """Answers a prompt, of the embedded world."""
    people: int = Field(5, ge=2)
    """Simulated people. They take turns at the training prompts, and all of them rank every held-out one."""
    noise: float = Field(0.35, ge=0)
    """Of each person's impression of an answer, on the true score's scale 0..1; at 0.35 people agree about as often as
    InstructGPT's labellers (73%)."""
    features: bool = True
    """Log-prob features of the language model beside the hidden state."""
    passes: float = Field(3.0, gt=0)
    """Passes over the subset, but at least `min_steps` steps."""
    min_steps: int = Field(30, ge=1)
    batch_size: int = Field(16, ge=1)
    """Prompts a step."""
    max_length: int = Field(256, ge=8)
    """Tokens of prompt and response."""
    documents: int = Field(20_000, ge=1)
    """Documents of the world's text for the presets."""
    text_steps: int = Field(600, ge=1)
    """Steps of a preset's pretraining."""
    sft_steps: int = Field(300, ge=1)
    """Steps of its fine-tuning."""
    optimizer: OptimConfig = OptimConfig(name="adamw", lr=1.5e-3, eps=1e-5, decay=0.9)

    @model_validator(mode="after")
    def _trained(self) -> RewardCurveConfig:
        fresh = [name for name in self.models if name.startswith("preset:")]
        if fresh and not is_world(self.data):
            raise ValueError(f"models={fresh[0]}: only the embedded world has text at hand to train it; give models "
                             "of your own, e.g. models=[runs/small/sft,runs/large/sft]")  # fmt: skip
        if not self.models or not self.prompts or min(self.prompts) < 1:
            raise ValueError(f"models={self.models}, prompts={self.prompts}: expected at least one of each, positive")
        return self


def run(config: RewardCurveConfig, run: RunDir) -> dict[str, Any]:
    """Train every cell, write the table (summary.json) and figures/study.png."""
    files = [write_rankings(config, run, seed) for seed in range(config.seeds)]
    cells: Rows = []
    for name in config.models:
        base = _base(config, run, name)
        parameters = parameter_count(load_model(base)[0])
        for seed, (train, held, comparisons) in enumerate(files):
            for count in sorted({min(n, len(comparisons)) for n in config.prompts}):
                cell = {"model": label_of(name), "parameters": parameters, "prompts": count,
                        "comparisons": sum(comparisons[:count]), "seed": seed}  # fmt: skip
                cells.append(cell | _cell(config, run, base, cell, (train, held)))
    people = read_report(run.path / cells[0]["run"]).get("people") or {}
    levels = {"people": people.get("between") or {}, "truth": people.get("truth_overlap") or {}}
    save_figure(run.path, "study", curve_panels(cells, levels), 2)
    known = {f"{name}_agreement{end}": found[f"agreement{end}"] for name, found in levels.items() for end in BOUNDS
             if found.get(f"agreement{end}") is not None}  # fmt: skip
    return {**known, **_verdict(cells, known), "cells": cells}


def write_rankings(config: RewardCurveConfig, run: RunDir, seed: int) -> tuple[str, str, list[int]]:
    """(training file, held-out file, comparisons of each training prompt in the file's order) of one seed, whose order
    of the training prompts is its own."""
    if is_world(config.data):
        people, here = panel(config.people, config.seed, config.noise), world(config.data)
        answers, drawn = config.responses, config.seed
        rows = list(ranking_rows(here, max(config.prompts), "train", people, 1, answers, drawn))
        held = list(ranking_rows(here, config.held_rows, "heldout", people, config.people, answers, drawn))
    else:
        rows, held = rankings(config.data, config.held_out, run.bad_rows, joined=False)
    random.Random(f"reward_curve:{config.seed}:{seed}").shuffle(rows)
    files = run.path / f"rankings-{seed}.jsonl", run.path / "heldout.jsonl"
    for file, part in zip(files, (rows, held)):
        write_atomic(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part))
    return str(files[0]), str(files[1]), [len(better_pairs(row)) for row in join_annotators(rows)]


def _base(config: RewardCurveConfig, run: RunDir, name: str) -> str:
    """The language model of one size: the one named, or a preset brought up on the world's text and dialogues."""
    if not name.startswith("preset:"):
        return name
    data, seed, size = config.data, config.seed, name.removeprefix("preset:")
    words, text, base, tuned = (str(run.path / part) for part in ("tokenizer", "text", f"base-{size}", f"sft-{size}"))
    stage(run, "tokenizer", build(tokenizer.TokenizerConfig, {"data": data, "seed": seed}), tokenizer.run)
    texts = build(prepare.PrepareConfig, {
        "tokenizer": words, "data": data, "documents": config.documents, "seed": seed,
    })  # fmt: skip
    stage(run, "text", texts, prepare.run)
    made = build(pretrain.PretrainConfig, {
        "data": text, "tokenizer": words, "model": name, "order": "file", "steps": config.text_steps, "eval_every": 0,
        "seed": seed,
    })  # fmt: skip
    stage(run, Path(base).name, made, pretrain.run)
    asked = build(sft.SftConfig, {
        "model": base, "data": data, "steps": config.sft_steps, "batch_size": 64, "rows": 64 * config.sft_steps,
        "eval_every": 0, "seed": seed, "optimizer": SFT_OPTIMIZER,
    })  # fmt: skip
    stage(run, Path(tuned).name, asked, sft.run)
    return tuned


def _cell(
    config: RewardCurveConfig, run: RunDir, base: str, cell: dict[str, Any], files: tuple[str, str]
) -> dict[str, Any]:
    """Train and measure one reward model."""
    count, seed = cell["prompts"], cell["seed"]
    steps = max(config.min_steps, round(config.passes * count / config.batch_size))
    name = f"rm-{cell['model'].replace('/', '-')}-{count}-{seed}"
    trained = build(reward.RewardConfig, {
        "model": base, "data": files[0], "held_out": files[1], "rows": count, "held_rows": config.held_rows,
        "features": config.features, "steps": steps, "batch_size": config.batch_size, "max_length": config.max_length,
        "save_every": 0, "optimizer": config.optimizer, "seed": config.seed + seed,
    })  # fmt: skip
    found = stage(run, name, trained, reward.run)
    kept = ("model_agreement", "accuracy", "gold_accuracy", "right_over_wrong", "train_accuracy", "calibration_error")
    keys = [f"{key}{end}" for key in kept for end in BOUNDS]
    return {"run": name, "steps": steps, **{key: found[key] for key in keys if key in found}}


def label_of(model: str) -> str:
    """A preset's name, or the last two parts of a path or hub id."""
    return model.removeprefix("preset:") if model.startswith("preset:") else "/".join(Path(model).parts[-2:])


def measure(cells: Sequence[dict[str, Any]]) -> str:
    """What the curves show: agreement with one person, or accuracy where the rows name none."""
    return "model_agreement" if all("model_agreement" in cell for cell in cells) else "accuracy"


def averaged(cells: Sequence[dict[str, Any]], model: str, prompts: int) -> tuple[float, float, float] | None:
    """(mean over seeds, lowest lower bound, highest upper bound) of a model's cells of one size of subset."""
    key = measure(cells)
    some = [cell for cell in cells if cell["model"] == model and cell["prompts"] == prompts]
    if not some:
        return None
    bounds = [[cell.get(f"{key}{end}", cell[key]) for cell in some] for end in BOUNDS]
    return sum(bounds[0]) / len(some), min(bounds[1]), max(bounds[2])


def _verdict(cells: Sequence[dict[str, Any]], known: dict[str, float]) -> dict[str, Any]:
    """Each model at its largest subset, and its distance from people."""
    out: dict[str, Any] = {"measure": measure(cells)}
    most = max(cell["prompts"] for cell in cells)
    for model in dict.fromkeys(cell["model"] for cell in cells):
        value, low, high = averaged(cells, model, most) or (0.0, 0.0, 0.0)
        out |= {f"{model}": value, f"{model}_low": low, f"{model}_high": high}
        if "people_agreement" in known:
            out[f"{model}_below_people"] = known["people_agreement"] - value
    return out


def curve_panels(cells: Sequence[dict[str, Any]], levels: dict[str, Any]) -> list[Panel]:
    """Agreement by comparisons, a line a model, and by parameters, a line a subset; people and truth across both."""
    models = list(dict.fromkeys(cell["model"] for cell in cells))
    counts = sorted({cell["prompts"] for cell in cells})
    size = {cell["model"]: cell["parameters"] / 1e6 for cell in cells}
    pairs = {n: sum(c["comparisons"] for c in cells if c["prompts"] == n) / sum(c["prompts"] == n for c in cells)
             for n in counts}  # fmt: skip
    by_count = [(model, [(pairs[n], averaged(cells, model, n)) for n in counts]) for model in models]
    ordered = sorted(models, key=size.__getitem__)
    by_size = [(f"{n} prompts", [(size[m], averaged(cells, m, n)) for m in ordered]) for n in counts]
    label = "agreement with one person" if measure(cells) == "model_agreement" else "accuracy"
    made = [_panel("by comparisons", "comparisons", label, by_count, levels)]
    if len(models) > 1:
        made.append(_panel("by size", "parameters (millions)", label, by_size, levels, "fraction"))
    return made


NAMES = {"people": "one person with another", "truth": "true scores with one person"}


def _panel(
    title: str, x_label: str, y_label: str, curves: Sequence[Any], levels: dict[str, Any], scale: Any = "doubling"
) -> Panel:
    lines, bands = [], []
    for label, points in curves:
        kept = [(x, *found) for x, found in points if found]
        x, middle, low, high = (list(column) for column in zip(*kept))
        lines.append((label, x, middle))
        bands.append((low, high))
    ends = [min(x for _, xs, _ in lines for x in xs), max(x for _, xs, _ in lines for x in xs)]
    for name, found in levels.items():
        if found.get("agreement") is not None:
            value = found["agreement"]
            low, high = (value if found[f"agreement{end}"] is None else found[f"agreement{end}"] for end in BOUNDS[1:])
            lines.append((NAMES[name], ends, [value] * 2))
            bands.append(([low] * 2, [high] * 2))
    return Panel(title, x_label, y_label, lines, bands, scale)
