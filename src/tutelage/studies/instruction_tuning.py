"""Claim: tuned on more tasks told as instructions, a model does better at kinds of tasks that it was never tuned on
(FLAN: Wei et al. 2021, figure 6, at 137B parameters; at 8B and below tuning made held-out tasks worse, figure 7. T0:
Sanh et al. 2022).

Whole clusters are held out. A model is tuned on nested, random sets of the other templates, always on the same number
of rows, and asked the held-out templates zero-shot before and after: how often the right label ranks first, and how
many nats the right answer costs. Every cell is a run of its own: interrupted, the same command goes on.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from tutelage.core.atomic import write_atomic
from tutelage.core.config import StageConfig, build
from tutelage.core.rundir import RunDir
from tutelage.engine import load
from tutelage.icl.fitting import Fitting
from tutelage.icl.held_out import measure, summarised
from tutelage.icl.mixture import chosen, ready_sets
from tutelage.icl.ready import ready_tasks
from tutelage.icl.tasks import Task
from tutelage.model.hub import model_source
from tutelage.model.kinds import stored_kind
from tutelage.model.presets import kind_of
from tutelage.report.instruction import curve_panels
from tutelage.report.plots import save_figure
from tutelage.stages import mixture, prepare, pretrain, sft, tokenizer
from tutelage.studies.parts import stage
from tutelage.train.drive import console
from tutelage.train.inner import part
from tutelage.train.optim import OptimConfig

Rows = list[dict[str, Any]]
BLOCK = 128
"""Tokens of a row of a preset's pretraining."""


class InstructionTuningConfig(StageConfig):
    data: str
    """Folder of rows whose templates are applied already, a file each (P3, as `mixture ready=`)."""
    model: str = "preset:laptop-0.3m"
    """The model to tune: a folder, run directory or hub id, or a preset, which is first pretrained on the text of the
    training templates (never of the held-out ones)."""
    held_out: tuple[str, ...] = ("paraphrase", "topic")
    """Clusters (or data sets) that no model is tuned on."""
    templates: tuple[int, ...] = (8, 32, 1000)
    """Numbers of training templates; a smaller set is part of every larger one, and there are at most all."""
    seeds: int = Field(3, ge=1)
    """Orders of the templates, mixtures and shuffles."""
    limit: int = Field(40, ge=1)
    """Examples of each held-out template."""
    rows: int = Field(2_400, ge=1)
    """Rows of a mixture, whatever the number of templates."""
    few_shot: float = Field(0.5, ge=0, le=1)
    """Share of the rows with demonstrations."""
    steps: int = Field(75, ge=1)
    batch_size: int = Field(32, ge=1)
    max_length: int = Field(256, ge=32)
    """Tokens of a row, in tuning and in measuring."""
    optimizer: OptimConfig = OptimConfig(name="muon", lr=1e-3, muon_lr=5e-3, decay=0.7)
    vocab_size: int = Field(1024, ge=300)
    """Of a preset's tokenizer."""
    text_steps: int = Field(300, ge=1)
    """Steps of a preset's pretraining."""


def run(config: InstructionTuningConfig, run: RunDir) -> dict[str, Any]:
    """Tune and measure every cell; summary.json has the table, figures/study.png the curve."""
    train, held = divided(config)
    base, decoder = _base(config, run, train)
    before = _measured(config, run, "before", base, held, chat=False)
    counts = sorted({min(n, len(train)) for n in config.templates})
    after: dict[int, list[Rows]] = {n: [] for n in counts}
    losses: dict[int, list[float]] = {n: [] for n in counts}
    for seed in range(config.seeds):
        order = sorted(task.name for task in train)
        random.Random(f"instruction_tuning:{config.seed}:{seed}").shuffle(order)
        for count in counts:
            tuned, loss = _tuned(config, run, base, order[:count], seed)
            losses[count].append(loss)
            after[count].append(_measured(config, run, f"after-{count}-{seed}", tuned, held, chat=decoder))
    cells = []
    for count, seeds in [(0, [before]), *after.items()]:
        for cluster, found in summarised(seeds).items():
            cells.append({"training_templates": count, "cluster": cluster, "seeds": len(seeds), **found})
    save_figure(run.path, "study", curve_panels(cells), 2)
    return {
        "study": "instruction tuning", "model": config.model, "training_templates": len(train),
        "held_templates": len(held), "training_loss": {str(n): sum(v) / len(v) for n, v in losses.items()},
        "cells": cells,
    }  # fmt: skip


def divided(config: InstructionTuningConfig) -> tuple[list[Task], list[Task]]:
    """(training tasks, held-out tasks), a task being a template. ConfigError for a cluster that is not there."""
    tasks = ready_tasks(config.data).tasks
    sets = ready_sets(tasks, cap=1, seed=0)
    names = {w.name for d in chosen(sets, config.held_out, ()) for w in d.wordings}
    chosen(sets, (), config.held_out)  # something is left to train on
    return [t for t in tasks if t.name not in names], [t for t in tasks if t.name in names]


def _base(config: InstructionTuningConfig, run: RunDir, train: Sequence[Task]) -> tuple[str, bool]:
    """(the model before tuning, whether it is a decoder)."""
    name = config.model
    if not name.startswith("preset:"):
        return name, stored_kind(model_source(name)) == "causal"
    text = run.path / "text.jsonl"
    if not text.exists():
        documents = [{"text": f"{e.text}\n{e.answer}"} for task in train for e in task.examples("train") if e.answer]
        random.Random(config.seed).shuffle(documents)
        write_atomic(text, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in documents))
    words, shards = str(run.path / "tokenizer"), str(run.path / "text")
    seed = {"seed": config.seed}
    learned = {"data": str(text), "vocab_size": config.vocab_size, **seed}
    stage(run, "tokenizer", build(tokenizer.TokenizerConfig, learned), tokenizer.run)
    stage(run, "text", build(prepare.PrepareConfig, {"data": str(text), "tokenizer": words, **seed}), prepare.run)
    decoder = kind_of(name) == "decoder"
    made = build(pretrain.PretrainConfig, {
        "data": shards, "tokenizer": words, "model": name, "steps": config.text_steps, "max_length": config.max_length,
        "block_size": min(BLOCK, config.max_length), "objective": "causal" if decoder else "span", "eval_every": 0,
        "save_every": 0, **seed,
    })  # fmt: skip
    stage(run, "base", made, pretrain.run)
    return str(run.path / "base"), decoder


def _tuned(
    config: InstructionTuningConfig, run: RunDir, base: str, templates: Sequence[str], seed: int
) -> tuple[str, float]:
    """(the model tuned on the templates, its last training loss)."""
    name = f"{len(templates)}-{seed}"
    common = {"ready": config.data, "tokenizer": base, "max_length": config.max_length, "seed": config.seed + seed}
    rows = build(mixture.MixtureConfig, {
        **common, "only": list(templates), "rows": config.rows, "few_shot": config.few_shot,
    })  # fmt: skip
    stage(run, f"mixture-{name}", rows, mixture.run)
    asked = build(sft.SftConfig, {
        "model": base, "data": str(run.path / f"mixture-{name}"), "steps": config.steps,
        "batch_size": config.batch_size, "rows": config.rows, "max_length": config.max_length, "eval_every": 0,
        "save_every": 0, "optimizer": config.optimizer, "seed": config.seed + seed,
    })  # fmt: skip
    found = stage(run, f"tuned-{name}", asked, sft.run)
    return str(run.path / f"tuned-{name}"), found["loss"]


def _measured(
    config: InstructionTuningConfig, run: RunDir, name: str, model: str, held: Sequence[Task], chat: bool
) -> Rows:
    """The rows of icl.held_out.measure, kept in the part's folder."""

    def work(inner: RunDir) -> dict[str, Any]:
        engine: Any = load(model, "cpu")
        fitting = Fitting(engine.tokenizer, min(config.max_length, engine.context_length))
        rows = measure(engine, held, fitting, config.limit, chat)
        write_atomic(inner.path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        return dict(summarised([rows]))

    identity = {"model": model, "data": config.data, "limit": config.limit, "max_length": config.max_length,
                "templates": [task.name for task in held], "chat": chat}  # fmt: skip
    found = part(run, name, identity, work, {"model": model} if Path(model).exists() else {})
    words = ", ".join(f"{cluster} {_words(row)}" for cluster, row in found.items())
    console.print(f"[bold]{name}[/] {words}")
    with (run.path / name / "rows.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _words(row: dict[str, Any]) -> str:
    ranked = f"accuracy {row['accuracy']:.3f}, " if "accuracy" in row else ""
    return f"{ranked}loss {row['loss']:.3f}"
