"""Training to learn in context: MetaICL on tasks, direct or channel, and self-supervised training on plain text.

k-shot accuracy on target tasks that are not trained on is measured before and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from tutelage.core.errors import ConfigError, DataError
from tutelage.core.rundir import RunDir
from tutelage.engine import LocalEngine
from tutelage.icl.before_after import Target, compare, each_task, hits, mean_accuracy, target
from tutelage.icl.examples import Example, subsample
from tutelage.icl.metatraining import MARKERS, Draw, Selfmade, Sequences, Tasks, mean_of_sequences
from tutelage.icl.prompts import MINIMAL, Format
from tutelage.icl.tasks import WORLD_FORMAT, Task, load_task, named_files
from tutelage.model.hub import load_model, resize_for, save_model
from tutelage.report.metaicl import save_curve
from tutelage.schoolroom.incontext import task_names
from tutelage.text.selfsupervised import OBJECTIVES, Objective, SelfSupervised
from tutelage.text.tokenizer import ensure_pad
from tutelage.train.guard import TrainingKeys
from tutelage.train.loop import train
from tutelage.train.optim import OptimConfig, Optimizers
from tutelage.train.sources import is_function, is_world, texts

FORMS = {"minimal": MINIMAL, "markers": MARKERS, "world": WORLD_FORMAT}


class MetaiclConfig(TrainingKeys):
    model: str
    """A decoder: a run directory, folder or hub id."""
    objective: Literal["metaicl", "selfsupervised"] | Objective = "metaicl"
    """metaicl: tasks; the others: what plain text gives, selfsupervised all four of them."""
    tasks: str | list[str] = "schoolroom:demo"
    """metaicl: training tasks, as `tutelage icl` names them, or the embedded world's."""
    targets: str | list[str] = [
        "schoolroom:demo:heldout", "schoolroom:demo:heldout_labels", "schoolroom:demo:heldout_families"
    ]  # fmt: skip
    """Tasks that are measured before and after, none of them a training task."""
    data: str | None = None
    """Folder with the built-in tasks' files (default: $TUTELAGE_DATA)."""
    text: str = "schoolroom:demo"
    """The self-supervised objectives' text: a file, a folder or the embedded world."""
    documents: int = Field(20_000, ge=2)
    """At most so many documents of it."""
    channel: bool = False
    """metaicl: learn P(input | answer), and measure so."""
    shots: int = Field(4, ge=0)
    """Demonstrations in a training sequence; 0: the query alone, as multi-task training has it."""
    format: Literal["own", "minimal", "markers", "world"] | Format | None = None
    """Of training and of measurement: own (each task's), minimal (MetaICL's lines), markers ("Input:", "Output:"),
    world (the embedded world's), or templates (format.input=...). By default own, of text markers."""
    world_tasks: int = Field(4000, ge=1)
    """Of the embedded world: so many different training tasks."""
    examples: int = Field(16_384, ge=1)
    """At most so many training examples of a task, drawn once."""
    measured: list[int] = [0, 2, 4, 8]
    """Shots that are measured, beside `shots`."""
    target_tasks: int = Field(16, ge=1)
    """Of the embedded world: target tasks of each kind."""
    limit: int = Field(48, ge=1)
    """At most so many test examples of a target."""
    seeds: int = Field(1, ge=1)
    """Sets of demonstrations of a target."""
    steps: int = Field(1000, ge=1)
    """Optimiser steps."""
    batch_size: int = Field(32, ge=1)
    """Sequences per step."""
    max_length: int = Field(1024, ge=8)
    """Longest sequence in tokens, at most the model's context; longer ones lose demonstrations from the beginning."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU and on a CPU that was measured to be quicker with it."""
    eval_every: int = Field(200, ge=0)
    """Steps between measurements at `shots`; there is always one at the end."""
    save_every: int = Field(200, ge=0)
    """Steps between checkpoints; 0: only at the end and when stopped."""
    optimizer: OptimConfig = OptimConfig(name="muon", lr=1e-3, muon_lr=5e-3)

    @model_validator(mode="after")
    def _fits(self) -> MetaiclConfig:
        if self.channel and self.objective != "metaicl":
            raise ValueError(f"channel=true with objective={self.objective}: its examples have no other direction")
        if self.format == "own" and self.objective != "metaicl":
            raise ValueError(f"format=own with objective={self.objective}: choose markers, minimal, world or templates")
        if any(k < 0 for k in self.measured):
            raise ValueError(f"measured={self.measured}: shots are 0 or more")
        return self

    def named_files(self) -> dict[str, str]:
        """The data files of training and target tasks, or the text."""
        wanted = [name for name in _listed(self.targets) + self._trained() if not is_world(name)]
        out = named_files(wanted, self.data)
        plain = self.objective != "metaicl" and not is_world(self.text)
        return {**out, "text": self.text.rpartition(":")[0] if is_function(self.text) else self.text} if plain else out

    def _trained(self) -> list[str]:
        return _listed(self.tasks) if self.objective == "metaicl" else []

    def form(self) -> Format | None:
        """The format of everything, or None where each task has its own."""
        if isinstance(self.format, Format):
            return self.format
        return FORMS.get(self.format or ("own" if self.objective == "metaicl" else "markers"))


def run(config: MetaiclConfig, run: RunDir) -> dict[str, Any]:
    model, tokenizer = load_model(config.model)
    ensure_pad(tokenizer)
    resize_for(model, tokenizer)
    engine = LocalEngine(model, tokenizer)
    if engine.kind != "causal":
        raise ConfigError(f"model={config.model}: in-context training is for decoders, this is {engine.kind}")
    form, shots = config.form(), sorted({*config.measured, config.shots})
    draw: Draw = _tasks(config, form) if config.objective == "metaicl" else _selfmade(config, run, form or MARKERS)
    loader = Sequences(
        draw, tokenizer, config.shots, config.batch_size, min(config.max_length, engine.context_length), config.seed,
        config.channel, every=config.objective != "metaicl",
    )  # fmt: skip
    score, seeds = "channel" if config.channel else "direct", range(config.seed, config.seed + config.seeds)
    targets = _targets(config, engine, form, max(shots))
    model.eval()
    before = hits(targets, shots, score, seeds)
    last = train(
        model, mean_of_sequences, loader, Optimizers(model, config.optimizer), run, steps=config.steps,
        precision=config.precision, eval_every=config.eval_every, save_every=config.save_every, log_every=25,
        evaluate=lambda: {"accuracy": mean_accuracy(hits(targets, [config.shots], score, seeds[:1]))},
    )  # fmt: skip
    model.eval()
    after = hits(targets, shots, score, seeds)
    save_model(model, tokenizer, run.path / "model")
    groups = compare(targets, before, after)
    whole = [Target(one.name, "all targets", one.bench) for one in targets]
    groups += compare(whole, before, after) if len({row["group"] for row in groups}) > 1 else []
    save_curve(run.path, groups)
    return {
        **_told(groups, config.shots), "loss": last["loss"], "right": last["right"], "dropped": loader.dropped,
        "too_long": loader.too_long, "groups": groups,
        "tasks": each_task(targets, before, after, config.shots),
    }  # fmt: skip


def _listed(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def _expanded(names: Sequence[str], split: str, count: int) -> list[str]:
    """Names of tasks, the embedded world's written out."""
    return [one for name in names for one in (task_names(name, split, count) if is_world(name) else [name])]


def _tasks(config: MetaiclConfig, form: Format | None) -> Tasks:
    names = _expanded(config._trained(), "train", config.world_tasks)
    held = set(_expanded(_listed(config.targets), "heldout", config.target_tasks))
    if both := [name for name in names if name in held]:
        raise ConfigError(f"task {both[0]} is a training task and a target; a target must not be trained on")
    return Tasks([(form or task.format, _pool(task, config)) for task in (load_task(n, config.data) for n in names)])


def _pool(task: Task, config: MetaiclConfig) -> list[Example]:
    """Training examples of a task; DataError where they are too few for one sequence."""
    pool = subsample(task.examples("train"), config.examples, config.seed)
    if len(pool) <= config.shots:
        need = f"shots={config.shots} and a query need {config.shots + 1}"
        raise DataError(f"task {task.name}: {len(pool)} training examples, and {need}; ask for fewer")
    return pool


def _selfmade(config: MetaiclConfig, run: RunDir, form: Format) -> Selfmade:
    found = list(texts(config.text, "train", config.documents, bad=run.bad_rows))
    objectives = OBJECTIVES if config.objective == "selfsupervised" else (config.objective,)
    return Selfmade(SelfSupervised(found, config.text), objectives, form)  # type: ignore[arg-type]


def _targets(config: MetaiclConfig, engine: LocalEngine, form: Format | None, most: int) -> list[Target]:
    out = []
    for name in _expanded(_listed(config.targets), "heldout", config.target_tasks):
        group = name.rpartition(":")[0] if is_world(name) else "targets"
        out.append(target(engine, load_task(name, config.data), group, form, config.limit, most))
    return out


def _told(groups: Sequence[dict[str, Any]], shots: int) -> dict[str, Any]:
    """The flat numbers of the last group at `shots`: all targets."""
    row = [row for row in groups if row["shots"] == shots][-1]
    names = {"before": "accuracy_before", "after": "accuracy", "gain": "gain"}
    return {f"{name}{end}": row[f"{key}{end}"] for key, name in names.items() for end in ("", "_low", "_high")}
