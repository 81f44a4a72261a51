"""Three architectures, equal compute: a decoder, an encoder and an encoder-decoder read the same text with the same
FLOPs; each is then prompted (zero- and few-shot, no weight changed), fine-tuned and prompt-tuned on one task, and
tuned on the other tasks' instructions.

An encoder-decoder of twice the layers costs a token what the decoder costs, since it passes one half (Raffel et al.
2020, section 3.2.2), so that FLOPs and tokens can be equal together. FLOPs are counted on the training steps, and every
architecture takes as many steps as its budget allows. Every part is a run directory of its own inside the study's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from tutelage.core.config import StageConfig, build
from tutelage.core.rundir import RunDir
from tutelage.core.runtime import reseed
from tutelage.core.stats import seeds_interval
from tutelage.engine import LocalEngine
from tutelage.icl.evaluate import Bench, Setting, evaluate
from tutelage.icl.examples import Example, subsample
from tutelage.icl.tasks import Task, load_task
from tutelage.icl.tune import add_prompt, tune
from tutelage.model.count import training_flops
from tutelage.model.hub import create_model, load_model, load_tokenizer, merged, parameter_count
from tutelage.report.icl import draw_sweep
from tutelage.report.plots import Panel, save_figure
from tutelage.stages import icl, prepare, pretrain, tokenizer
from tutelage.studies.architectures_tasks import write_tasks
from tutelage.studies.parts import stage
from tutelage.text.loader import BlockLoader
from tutelage.text.shards import TokenShards
from tutelage.train.drive import console
from tutelage.train.inner import part
from tutelage.train.loop import Objective
from tutelage.train.objectives import causal
from tutelage.train.optim import OptimConfig
from tutelage.train.pretraining import setting
from tutelage.train.sources import is_world

Architecture = Literal["decoder", "encoder", "encoder-decoder", "prefix"]
Size = Literal["0.3m", "1m"]
Method = Literal["fine-tuned", "prompt-tuned", "instruction-tuned"]
Rows = list[dict[str, Any]]
OBJECTIVES: dict[str, Any] = {"decoder": "causal", "encoder": "masked", "encoder-decoder": "span", "prefix": "prefix"}
READS = {"decoder": "continuation", "encoder": "mask", "encoder-decoder": "sentinel", "prefix": "continuation"}
"""Where each reads an answer: as its pretraining asked for words. "prefix" has seen no sentinel."""
SHAPES: dict[str, dict[str, str]] = {
    "0.3m": {"decoder": "laptop-0.3m", "encoder": "laptop-bert-0.3m", "encoder-decoder": "laptop-t5-0.6m"},
    "1m": {"decoder": "laptop-1m", "encoder": "laptop-bert-1m", "encoder-decoder": "laptop-t5-2m"},
}
"""Size (the decoder's) -> presets whose FLOPs for a token of text are nearly the same."""
SAMPLED = 8
"""Rows on which FLOPs are counted, each alone, so that no padding counts."""


class ArchitecturesConfig(StageConfig):
    data: str = "schoolroom:demo"
    """The text that all read: the embedded world, or a file or folder."""
    tasks: list[str] = []
    """Tasks that are evaluated: descriptions (.toml) or built-in names; the embedded world has its own."""
    instructions: list[str] = []
    """Tasks that instruction tuning learns beside `tasks` (of which the evaluated one is always left out)."""
    task_data: str | None = None
    """Folder with the built-in tasks' files."""
    architectures: list[Architecture] = ["decoder", "encoder", "encoder-decoder", "prefix"]
    """prefix: an encoder-decoder that continues beginnings of texts."""
    sizes: list[Size] = ["0.3m"]
    """Of the decoder, in parameters; the others cost the same FLOPs for a token."""
    seeds: int = Field(2, ge=1)
    """Models of each size and architecture."""
    steps: int = Field(1200, ge=1)
    """Optimiser steps of the decoder. The others take as many as cost the same FLOPs."""
    batch_size: int = Field(9, ge=1)
    block_size: int = Field(256, ge=8)
    """Tokens of a training sequence, and the context of all models: BERT knows no place behind those it was trained on,
    so few-shot prompts must not be longer."""
    vocab_size: int = Field(768, ge=1)
    documents: int = Field(55_000, ge=1)
    """At most this many documents."""
    optimizer: OptimConfig = OptimConfig(name="muon", lr=6e-3, muon_lr=0.02, weight_decay=0.1)
    """Of pretraining."""
    shots: list[int] = [0, 1, 2, 4, 6]
    """Demonstrations of the prompted models."""
    demos: list[Literal["before", "after", "around"]] = ["before"]
    """Where demonstrations stand, for models that read an answer within the text; a continuation has them before."""
    demo_sets: int = Field(2, ge=1)
    """Sets of demonstrations."""
    limit: int = Field(100, ge=1)
    """Test examples of a task."""
    methods: list[Method] = ["fine-tuned", "prompt-tuned", "instruction-tuned"]
    """Beside prompting."""
    tune_rows: int = Field(400, ge=1)
    """Training examples of a task."""
    tune_steps: int = Field(60, ge=1)
    tune_batch: int = Field(16, ge=1)
    tune_optimizer: OptimConfig = OptimConfig(name="muon", lr=1e-3, muon_lr=3e-3)
    prompt_tokens: int = Field(16, ge=1)
    """Virtual tokens of prompt-tuned."""
    prompt_steps: int = Field(200, ge=1)
    """Its optimiser steps, of `tune_batch` rows."""
    prompt_optimizer: OptimConfig = OptimConfig(name="adamw", lr=3e-2)

    @model_validator(mode="after")
    def _has_tasks(self) -> ArchitecturesConfig:
        if self.data != "schoolroom:demo" and not self.tasks:
            raise ValueError(f"data={self.data} has no tasks of its own; give tasks=[description.toml, ...]")
        return self

    def named_files(self) -> dict[str, str]:
        """The tasks' descriptions."""
        return {f"task {i}": name for i, name in enumerate([*self.tasks, *self.instructions]) if name.endswith(".toml")}


def run(config: ArchitecturesConfig, run: RunDir) -> dict[str, Any]:
    """All models and what they can do: costs, a row for each architecture, size, method, form and number of
    demonstrations, two figures."""
    given = {"data": config.data, "seed": config.seed}
    learned = build(tokenizer.TokenizerConfig, {**given, "vocab_size": config.vocab_size}, where="tokenizer")
    words = stage(run, "tokenizer", learned, tokenizer.run)
    given |= {"tokenizer": str(run.path / "tokenizer"), "documents": config.documents}
    stage(run, "text", build(prepare.PrepareConfig, given, where="prepare"), prepare.run)
    tasks = _tasks(config, run)
    costs: Rows = []
    found: Rows = []
    for size in config.sizes:
        budget = _cost(config, run, size, "decoder")["row_flops"] * config.batch_size * config.steps
        for architecture in config.architectures:
            cost = _cost(config, run, size, architecture)
            steps = max(1, round(budget / (cost["row_flops"] * config.batch_size)))
            rows = steps * config.batch_size
            cost |= {"steps": steps, "flops": rows * cost["row_flops"], "tokens": rows * cost["row_tokens"]}
            costs.append({"size": size, "architecture": architecture, **cost})
            for seed in range(config.seed, config.seed + config.seeds):
                head = {"size": size, "architecture": architecture, "seed": seed}
                base = f"{size}-{architecture}-{seed}"
                stage(run, base, _pretrain(config, run, size, architecture, steps, seed), pretrain.run)
                found += [{**head, **row} for row in _prompted(config, run, base, architecture, tasks, seed)]
                found += [{**head, **row} for row in _tuned(config, run, base, architecture, tasks, seed)]
    table = summarise(found)
    _show(costs, table)
    _draw(run, table)
    return {"vocab_size": words["vocab_size"], "costs": costs, "table": table, "cells": found}


def _tasks(config: ArchitecturesConfig, run: RunDir) -> dict[str, list[str]]:
    """Names of tasks by form: "asked", "hidden" (the world's), and "instructions"."""
    if config.tasks:
        return {"asked": config.tasks, "hidden": [], "instructions": config.instructions}
    folder = run.path / "tasks"
    folder.mkdir(exist_ok=True)
    return write_tasks(folder, config.tune_rows, config.limit, config.seed)


def _preset(size: str, architecture: str) -> str:
    return f"preset:{SHAPES[size]['encoder-decoder' if architecture == 'prefix' else architecture]}"


def _pretrain(
    config: ArchitecturesConfig, run: RunDir, size: str, architecture: str, steps: int, seed: int
) -> pretrain.PretrainConfig:
    kept = ("batch_size", "block_size", "optimizer")
    order: Any = "file" if is_world(config.data) else "shuffled"  # the world's documents are a curriculum
    return pretrain.PretrainConfig(
        data=str(run.path / "text"), tokenizer=str(run.path / "tokenizer"), model=_preset(size, architecture),
        objective=OBJECTIVES[architecture], max_length=config.block_size, steps=steps, seed=seed, order=order,
        precision="fp32", eval_every=0, **{key: getattr(config, key) for key in kept},
    )  # fmt: skip


def _cost(config: ArchitecturesConfig, run: RunDir, size: str, architecture: str) -> dict[str, Any]:
    """Parameters, and FLOPs and tokens of text of a training row, measured on the first rows."""
    words, name = load_tokenizer(str(run.path / "tokenizer")), _preset(size, architecture)
    model: Any
    objective: Objective
    if architecture == "decoder":
        model, objective, length = create_model(name, words, config.block_size), causal, config.block_size
        rows: Iterator[Any] = BlockLoader(_text(run, words), 1, length, shuffle=False)
    else:
        made = setting(OBJECTIVES[architecture], name, words, config.block_size, config.block_size, 0)
        model, objective, length = made.model, made.loss, made.text_length(config.block_size)
        rows = made.loader(_text(run, words), 1, config.block_size, 0, shuffle=False)
    counted = [training_flops(lambda: objective(model, row)[0]) for row in islice(rows, SAMPLED)]  # noqa: B023
    return {"parameters": parameter_count(model), "row_flops": sum(counted) / SAMPLED, "row_tokens": length}


def _text(run: RunDir, words: Any) -> TokenShards:
    return TokenShards(run.path / "text" / "train", words)


def _prompted(
    config: ArchitecturesConfig, run: RunDir, base: str, architecture: str, tasks: Mapping[str, list[str]], seed: int
) -> Iterator[dict[str, Any]]:
    """A row for each task, number of demonstrations and their place: accuracy over the sets of demonstrations."""
    read = READS[architecture]
    places = config.demos if read != "continuation" else ["before"]
    for form in ("asked", "hidden"):
        if not tasks[form]:
            continue
        given = {
            "task": tasks[form], "data": config.task_data, "model": str(run.path / base), "shots": config.shots,
            "read": read, "demos": places, "seeds": config.demo_sets, "limit": config.limit, "seed": seed,
            "dtype": "float32",
        }  # fmt: skip
        found = stage(run, f"{base}-prompted-{form}", build(icl.IclConfig, given, where="icl"), icl.run)
        for cell in found["cells"]:
            kept = {key: cell[key] for key in ("shots", "demos", "n", "accuracy", "dropped", "too_long")}
            yield {"method": "prompted", "form": form, "task": Path(cell["task"]).stem, **kept}


def _tuned(
    config: ArchitecturesConfig, run: RunDir, base: str, architecture: str, tasks: Mapping[str, list[str]], seed: int
) -> Iterator[dict[str, Any]]:
    """A row for each method and task: accuracy without demonstrations after tuning."""
    loaded = {name: load_task(name, config.task_data) for name in [*tasks["asked"], *tasks["instructions"]]}
    model, read = str(run.path / base), READS[architecture]
    kept = {key: value for key, value in config.model_dump(mode="json").items() if key.startswith(("tune_", "prompt_"))}
    kept |= {"seed": seed, "model": model, "read": read, "limit": config.limit}
    for method, name in product(config.methods, tasks["asked"]):
        learned = [other for other in loaded if other != name] if method == "instruction-tuned" else [name]
        work = partial(
            _tune, config=config, method=method, model=model, task=loaded[name],
            learned=[loaded[other] for other in learned], read=read, seed=seed,
        )  # fmt: skip
        label, identity = Path(name).stem, {**kept, "method": method, "learned": learned}
        found = part(run, f"{base}-{method}-{label}", identity, work, {"model": model})
        told = {key: found[key] for key in ("n", "accuracy", "flops", "loss", "trained")}
        yield {"method": method, "form": "asked", "task": label, "shots": 0, "demos": "before", **told}


def _tune(
    inner: RunDir, *, config: ArchitecturesConfig, method: str, model: str, task: Task, learned: Sequence[Task],
    read: str, seed: int,
) -> dict[str, Any]:
    """Tune a copy of the model on the learned tasks' training examples; its accuracy on the task's test examples."""
    reseed(seed, inner.path.name)
    plain, words = load_model(model, any_kind=True)
    queries = subsample(task.examples("test"), config.limit)
    asked = {query.text for query in queries}
    rows: list[Example] = []
    for one in learned:
        rows += subsample([e for e in one.examples("train") if e.text not in asked], config.tune_rows, 1)
    form, zero_shot = task.format, Setting(shots=0, read=read)
    trained, steps, optimizer = plain, config.tune_steps, config.tune_optimizer
    if method == "prompt-tuned":
        trained, prompt = add_prompt(plain, words, config.prompt_tokens, seed)
        form = form.model_copy(update={"instruction": prompt})
        steps, optimizer = config.prompt_steps, config.prompt_optimizer
    bench = Bench(LocalEngine(trained, words), form, task.minimal, [], queries)
    spent = tune(
        bench.engine, bench.prompter(zero_shot), rows, inner, steps=steps, batch_size=config.tune_batch,
        optimizer=optimizer, seed=seed,
    )  # fmt: skip
    bench = replace(bench, engine=LocalEngine(merged(trained), words))
    return {**spent, **evaluate(bench, [zero_shot], 0)[0].metrics}


KEYS = ("size", "architecture", "method", "form", "shots", "demos")


def summarise(cells: Rows) -> Rows:
    """The mean accuracy over tasks of each setting, over models (seeds), with its interval."""
    table: Rows = []
    for key in dict.fromkeys(json.dumps([cell[k] for k in KEYS]) for cell in cells):
        mine = [cell for cell in cells if json.dumps([cell[k] for k in KEYS]) == key]
        by_seed: dict[int, Rows] = {}
        for cell in mine:
            by_seed.setdefault(cell["seed"], []).append(cell)
        values = [sum(c["accuracy"] for c in some) / len(some) for some in by_seed.values()]
        tested = sum(cell["n"] for cell in next(iter(by_seed.values())))
        mean, low, high = seeds_interval(values, tested)
        table.append({**{k: mine[0][k] for k in KEYS}, "accuracy": mean, "low": low, "high": high, "n": tested,
                      "seeds": len(values)})  # fmt: skip
    return table


def _show(costs: Rows, table: Rows) -> None:
    for cost in costs:
        console.print(
            f"[bold]{cost['architecture']} {cost['size']}[/] {cost['parameters']:,} parameters, {cost['steps']} steps, "
            f"{cost['tokens'] / 1e6:.2f}M tokens, {cost['flops']:.3g} FLOPs"
        )
    for row in table:
        console.print(
            f"{row['size']:5}{row['architecture']:16}{row['method']:18}{row['form']:7}{row['shots']:2} {row['demos']:7}"
            f"{row['accuracy']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        )


def _draw(run: RunDir, table: Rows) -> None:
    """figures/study.png: accuracy by the number of demonstrations; accuracy.png: by method."""
    panels = []
    for form in dict.fromkeys(row["form"] for row in table):
        mine = [row for row in table if row["form"] == form and row["method"] == "prompted"]
        item = Panel(f"prompted, {form}", "demonstrations", "accuracy", [], x_scale="doubling")
        for name in dict.fromkeys((r["size"], r["architecture"], r["demos"]) for r in mine):
            line = [r for r in mine if (r["size"], r["architecture"], r["demos"]) == name]
            item.lines.append((" ".join(name), [r["shots"] for r in line], [r["accuracy"] for r in line]))
            item.bands.append(([r["low"] for r in line], [r["high"] for r in line]))
        panels.append(item)
    save_figure(run.path, "study", panels, columns=2)
    asked = [row for row in table if row["form"] == "asked" and row["demos"] == "before"]
    names = [f"{row['shots']}-shot" if row["method"] == "prompted" else row["method"] for row in asked]
    bars = [{**row, "method": name} for row, name in zip(asked, names, strict=True)]
    draw_sweep(run.path, bars, ["size", "architecture", "method"])
