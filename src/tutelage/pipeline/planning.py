"""`tutelage plan`: what a recipe, or a single stage, will take on given devices, before anything runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from rich.table import Table
from transformers import AutoConfig

from tutelage.core.atomic import write_atomic
from tutelage.core.config import build
from tutelage.core.errors import ConfigError
from tutelage.model.hub import load_tokenizer, model_source
from tutelage.model.presets import build_config
from tutelage.pipeline.recipe import Step
from tutelage.pipeline.recipe import plan as read_recipe
from tutelage.pipeline.stages import config_class
from tutelage.plan.estimate import Estimate, Machine, estimate
from tutelage.plan.hardware import Hardware, parse_gpus
from tutelage.plan.measured import measured_mfu
from tutelage.plan.works import WORKS, Unknown


class PlanConfig(BaseModel):
    """Keys of `plan`; all others are the recipe's, or the stage's."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    gpus: str = "cpu"
    """Devices: 64xH100, A100-80, cpu (this machine)."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """auto: DDP where a sequence fits so, else FSDP."""
    tensor_parallel: int = Field(1, ge=1)
    """Ranks that share each layer (the devices divide by it)."""
    checkpointing: bool = False
    """Keep each layer's input alone and compute the rest again in the backward pass."""
    mfu: Annotated[float, Field(gt=0, le=1)] | str | None = None
    """Share of the peak that does the model's work, or the directory of a run of pretrain whose log says it; without it
    0.4 is assumed on GPUs, 0.3 on a CPU."""
    price: float | None = Field(None, ge=0)
    """Of a device and hour, in any currency."""
    tokens: float | None = Field(None, gt=0)
    """pretrain: tokens of the whole training in place of steps, e.g. 300e9."""
    vocab_size: int | None = Field(None, ge=1)
    """Where no tokenizer says it."""
    row_tokens: int | None = Field(None, ge=2)
    """Longest row of SFT and reward data; max_length if not given."""
    prompt_tokens: int = Field(64, ge=1)
    """RL: tokens of a prompt."""
    responses: int = Field(4, ge=2)
    """reward: answers per prompt."""
    out: str | None = None
    """Write every number as JSON to this file."""


MFU = {"cpu": 0.3, "gpu": 0.4}


@dataclass(frozen=True)
class Plan:
    """The planned stages, and those that are not planned."""

    stages: list[Estimate]
    others: list[str]


def plan_command(first: str, values: Mapping[str, Any]) -> tuple[list[Table], str]:
    """(tables, words below them) for a recipe's path or a stage's name; writes out= if it is given."""
    own = {key: values[key] for key in PlanConfig.model_fields if key in values}
    rest = {key: value for key, value in values.items() if key not in own}
    config = build(PlanConfig, own, "plan")
    if first.endswith(".toml"):
        _, steps, _ = read_recipe(first, rest, files=False)
    else:
        steps = [_single(first, rest)]
    found = plan_steps(steps, config)
    if config.out:
        text = {"stages": [e.as_json() for e in found.stages], "not_planned": found.others}
        write_atomic(Path(config.out), json.dumps(text, indent=1))
    tables = [memory_table(found), cost_table(found)] if found.stages else []
    return tables, "\n".join(_words(found, config))


def plan_steps(steps: list[Step], config: PlanConfig) -> Plan:
    """Plan every stage that trains. ConfigError where a model's size cannot be known, or no stage trains."""
    count, hardware = parse_gpus(config.gpus)
    if count % config.tensor_parallel:
        raise ConfigError(f"tensor_parallel={config.tensor_parallel} does not divide the {count} devices of gpus=")
    unknown = Unknown(config.row_tokens, config.prompt_tokens, config.responses, config.tokens)
    device = "cpu" if hardware.is_cpu else "cuda"
    known: dict[str, Any] = {}
    vocab = {s.values["out"]: int(s.values.get("vocab_size", 768)) for s in steps if s.kind == "tokenizer"}
    mfu, mfu_source = _mfu(config.mfu, hardware)
    stages, others = [], []
    for step in steps:
        if step.kind not in WORKS:
            others.append(step.name)
            continue
        stage = build(config_class(step.kind), step.values, step.name)
        model = known[step.values.get("out", step.name)] = _model(step, stage, known, vocab, config.vocab_size)
        work = WORKS[step.kind](step.name, stage, model, device, unknown)
        machine = Machine(
            hardware, count, config.tensor_parallel, "ddp" if config.parallel == "auto" else config.parallel,
            config.checkpointing, mfu, mfu_source, config.price,
        )  # fmt: skip
        found = estimate(work, machine)
        if config.parallel == "auto" and not found.fits and machine.data > 1:
            found = estimate(work, Machine(**{**machine.__dict__, "parallel": "fsdp"}))
        stages.append(found)
    return Plan(stages, others)


def _mfu(given: float | str | None, hardware: Hardware) -> tuple[float, str]:
    """The utilisation, and where it is from."""
    if isinstance(given, str):
        return measured_mfu(given, hardware), "measured"
    return (given, "given") if given else (MFU["cpu" if hardware.is_cpu else "gpu"], "assumed")


def _single(kind: str, values: Mapping[str, Any]) -> Step:
    """One stage by its name; required files that only the run itself needs may be left out."""
    if kind not in WORKS:
        raise ConfigError(f"{kind!r} is no recipe (.toml) and no stage that trains; stages: {', '.join(WORKS)}")
    given = dict(values)
    for name, field in config_class(kind).model_fields.items():
        if field.is_required() and name not in given and name != "model":
            given[name] = f"runs/{name}"
    return Step(kind, kind, given)


def _model(step: Step, stage: Any, known: Mapping[str, Any], vocab: Mapping[str, int], size: int | None) -> Any:
    """The transformers config of the stage's model."""
    name = stage.model
    if name in known:
        return known[name]
    if not name.startswith("preset:"):
        return AutoConfig.from_pretrained(model_source(name))
    named = str(getattr(stage, "tokenizer", None) or "")
    if size is None and named in vocab:
        size = vocab[named]
    if size is None:
        if not named or not Path(named).is_dir():
            raise ConfigError(f"[{step.name}] the vocabulary of {name} is not known; give vocab_size=, e.g. 50257")
        size = len(load_tokenizer(named))
    context = getattr(stage, "max_length", 0) if step.kind == "pretrain" else 0
    return build_config(name, size, max(context, getattr(stage, "block_size", 0), 2))


def memory_table(plan: Plan) -> Table:
    """Bytes of one rank by part at the highest moment, a column for each stage."""
    parts = dict.fromkeys(part for e in plan.stages for part in e.memory)
    lines: dict[str, Callable[[Estimate], str]] = {
        "model": lambda e: count(e.parameters),
        "split": lambda e: e.parallel,
        "precision": lambda e: e.precision,
        "rows x tokens": lambda e: f"{e.micro_batch} x {e.length}" + (f", {e.accumulate}x" if e.accumulate > 1 else ""),
        **{part: _size_of(part) for part in parts},
        "sum": lambda e: size(sum(e.memory.values())),
        "in phase": lambda e: e.phase,
        "room": lambda e: size(e.room),
        "most rows that fit": lambda e: str(e.largest_micro_batch) if e.fits else "none",
    }
    return _table("memory of one rank at its highest moment", plan, lines, "sum")


def _size_of(part: str) -> Callable[[Estimate], str]:
    return lambda e: size(e.memory.get(part, 0.0))


def cost_table(plan: Plan) -> Table:
    """FLOPs, time and money, a column for each stage."""
    lines: dict[str, Callable[[Estimate], str]] = {
        "steps": lambda e: f"{e.steps:,}",
        "tokens": lambda e: count(e.tokens),
        "FLOPs": lambda e: f"{e.flops:.3g}",
        "6 N D": lambda e: f"{e.flops_6nd:.3g}",
        "MFU": lambda e: f"{e.mfu:.2f} {e.mfu_source}",
        "a step": lambda e: clock(e.step_seconds),
        "time": lambda e: clock(e.days * 86400),
        "device hours": lambda e: f"{e.device_hours:,.3g}",
    }
    if any(e.cost is not None for e in plan.stages):
        lines["cost"] = lambda e: f"{e.cost:,.2f}"
    return _table("compute", plan, lines, "time")


def _table(title: str, plan: Plan, lines: Mapping[str, Callable[[Estimate], str]], bold: str) -> Table:
    table = Table(title=title)
    table.add_column("")
    for e in plan.stages:
        table.add_column(e.name, justify="right", overflow="fold")
    for name, cell in lines.items():
        table.add_row(name, *[cell(e) for e in plan.stages], style="bold" if name == bold else None)
    return table


def _words(plan: Plan, config: PlanConfig) -> list[str]:
    out = []
    for e in plan.stages:
        if e.kind == "pretrain":
            out.append(
                f"{e.name}: {count(e.tokens)} tokens, {e.tokens / e.parameters:.1f} a parameter; compute-optimal: "
                f"{count(e.chinchilla_tokens)} (20 a parameter), {count(e.hoffmann_tokens)} (Hoffmann's fitted law)"
            )
        if not e.fits:
            more = "" if config.checkpointing else "checkpointing=true, "
            out.append(f"{e.name}: not one sequence fits; try {more}more devices, tensor_parallel=8 or parallel=fsdp")
    if plan.others:
        out.append(f"not planned (no training): {', '.join(plan.others)}")
    return out


def size(number: float) -> str:
    """Three digits, in MB, GB or TB (powers of ten)."""
    for unit, name in ((1e12, "TB"), (1e9, "GB")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number / 1e6:.3g} MB" if number else "-"


def count(number: float) -> str:
    """1.06M, 175B, 1.4T."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"


def clock(seconds: float) -> str:
    """Seconds in the unit one would say them in."""
    for unit, name in ((86400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1000:.3g} ms"
