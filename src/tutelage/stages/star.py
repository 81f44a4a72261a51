"""STaR: a model learns from its own rationales, those that lead to the right answer; the rest are made again with the
answer as a hint. Also rejection-sampling fine-tuning, and self-training on the majority's answers."""

from __future__ import annotations

import time
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from tutelage.core.errors import DataError
from tutelage.core.rundir import RunDir
from tutelage.core.runtime import generator, reseed, stream_seed
from tutelage.engine import LocalEngine, load
from tutelage.icl.star.learn import (
    accuracy,
    encode_texts,
    nothing_learned,
    saturated,
    steps_of,
    training_texts,
)  # fmt: skip
from tutelage.icl.star.rationales import Asker, Asking, Method, counted, read_rationales, write_rationales
from tutelage.icl.star.tasks import Item, Material, Source, gather
from tutelage.model.hub import load_model, resize_for, save_model
from tutelage.text.chat import ensure_chat
from tutelage.text.loader import RowLoader
from tutelage.text.tokenizer import ensure_pad
from tutelage.train.drive import console
from tutelage.train.guard import TrainingKeys
from tutelage.train.inner import part
from tutelage.train.loop import train
from tutelage.train.objectives import causal
from tutelage.train.optim import OptimConfig, Optimizers
from tutelage.train.rewards import RewardSpec


class StarConfig(TrainingKeys):
    model: str
    """The base model: a run directory, folder or hub id. Every loop is fine-tuned from it."""
    data: str
    """Questions with answers (GSM8K, CommonsenseQA ... by their keys), prompts for check=, or arithmetic:1-5."""
    held_out: str | None = None
    """Questions by which the loops are stopped; without it, a tenth by a hash of the question."""
    test: str | None = None
    """Questions asked once, before and after everything (arithmetic makes its own)."""
    held_rows: int = Field(500, ge=1)
    """At most so many of each of these two."""
    check: RewardSpec | None = None
    """file.py:function with the signature of a reward, which says above 0.5 that a completion is right."""
    method: Method = "star"
    """star, rft (every different right one of several samples), self_consistency (the majority's answer is the label).
    """
    rationalise: bool = True
    """star: ask again with the answer as a hint where the answer was wrong."""
    loops: int = Field(16, ge=1)
    """At most so many loops."""
    patience: int = Field(3, ge=0)
    """Stop when so many loops brought no gain on the held-out questions; 0: never."""
    min_gain: float = Field(0.005, ge=0)
    """What counts as a gain."""
    pool: int = Field(50_000, ge=1)
    """At most so many training questions in all."""
    per_loop: int = Field(10_000, ge=1)
    """Questions asked in a loop, drawn anew from the pool."""
    shots: int | None = Field(None, ge=0)
    """Demonstrations before a question in the first loop: by default 0 for arithmetic and check=, else 8."""
    later_shots: int = Field(0, ge=0)
    """Demonstrations in the loops after it."""
    exemplars: str | None = None
    """A file of demonstrations with rationales, instead of our own."""
    chat: bool = False
    """Prompts as messages, for models with a chat template."""
    scratchpad: Literal["remaining", "pairs"] = "remaining"
    """Arithmetic: a line shows all digits still to be added, or the next pair alone."""
    samples: int = Field(8, ge=1)
    """Rationales a question (rft, self_consistency)."""
    temperature: float | None = Field(None, ge=0)
    """By default 0 (star) or 0.7."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Share of the probability that is sampled from."""
    agreement: float = Field(0.5, ge=0, le=1)
    """self_consistency: least share of the samples that must agree."""
    max_tokens: int | None = Field(None, ge=1)
    """Longest rationale in tokens: by default what a scratchpad needs, else 256."""
    ask_batch: int = Field(512, ge=1)
    """Questions asked together."""
    generator: str | None = None
    """An OpenAI-compatible server (http://.../v1) that makes the first loop's rationales."""
    generator_model: str | None = None
    """The model's name on it."""
    from_base: bool = True
    """Fine-tune the base model in every loop, as the paper does; false: go on from the loop before."""
    start_steps: int = Field(40, ge=1)
    """Optimiser steps of the first loop."""
    grow: float = Field(1.2, gt=0)
    """Each loop has so many times the steps of the one before."""
    steady_steps: int | None = Field(None, ge=0)
    """Instead of `grow`: so many steps more a loop (the paper's arithmetic: start_steps=300 steady_steps=20)."""
    batch_size: int = Field(32, ge=1)
    """Rows a step."""
    max_length: int = Field(1024, ge=2)
    """Longest row in tokens, at most the model's context; longer ones are left out."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU and on a CPU that was measured to be quicker with it."""
    save_every: int = Field(100, ge=0)
    """Steps between checkpoints within a loop."""
    optimizer: OptimConfig = OptimConfig(lr=1e-5, betas=(0.9, 0.999), warmup=0.1, decay=0.0)

    @model_validator(mode="after")
    def _fits(self) -> StarConfig:
        if self.method != "star" and self.temperature == 0 and self.samples > 1:
            raise ValueError(f"temperature=0 with method={self.method}: its samples would all be the same")
        if self.method == "self_consistency" and self.check is not None:
            raise ValueError("method=self_consistency with check=: a checked completion has no answer to vote for")
        return self


def run(config: StarConfig, run: RunDir) -> dict[str, Any]:
    """The loops, each in a folder of its own; the summary tells the best by the held-out questions, which is saved."""
    material = gather(_source(config), run.bad_rows)
    before = part(run, "loop-00", _identity(config, 0), lambda inner: _base(config, material))
    loops, scores = [], [before["accuracy"]]
    run.truncate_metrics(-1)  # rows of finished loops are written anew from their summaries
    run.log({"step": 0, **_numbers(before)})
    for loop in range(1, config.loops + 1):
        made = part(run, _name(loop), _identity(config, loop), lambda inner: _loop(config, run, inner, material, loop))  # noqa: B023
        loops.append(made)
        scores.append(made["accuracy"])
        run.log({"step": loop, **_numbers(made)})
        run.sync()
        _show(run, config, made, loop)
        if saturated(scores, config.patience, config.min_gain):
            break
    best = max(range(1, len(scores)), key=lambda loop: scores[loop])
    model, tokenizer = load_model(run.path / _name(best))
    save_model(model, tokenizer, run.path / "model")
    out = {"loops": len(loops), "best_loop": best, "accuracy_before": scores[0], **_scores(loops[best - 1], "accuracy"),
           "solved": loops[-1]["solved"], "rationalised": loops[-1]["rationalised"], "used": loops[-1]["used"],
           "training_questions": len(material.train)}  # fmt: skip
    if material.test:
        asker = _asker(config, LocalEngine(model.eval(), tokenizer), material, len(loops) + 1)
        after = accuracy(asker, material.test, f"{run.path.name} test", "test_accuracy")
        first = {f"{key}_before": value for key, value in _scores(before, "test_accuracy").items()}
        out = {**out, **first, **after}
    return out


def _source(config: StarConfig) -> Source:
    return Source(
        config.data, config.held_out, config.test, config.check, config.scratchpad, config.exemplars, config.chat,
        config.pool, config.held_rows, config.max_tokens or 256, config.seed,
    )  # fmt: skip


def _name(loop: int) -> str:
    return f"loop-{loop:02}"


def _identity(config: StarConfig, loop: int) -> dict[str, Any]:
    """What a loop's folder is made of; of the same run, so inputs need no hash."""
    return {**config.model_dump(mode="json", exclude={"out", "loops", "patience", "min_gain"}), "loop": loop}


def _numbers(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if isinstance(value, int | float)}


def _scores(found: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key.startswith(prefix)}


def _shots(config: StarConfig, loop: int) -> int:
    if loop > 1:
        return config.later_shots
    plain = config.data.startswith("arithmetic:") or config.check is not None
    return config.shots if config.shots is not None else 0 if plain else 8


def _asker(config: StarConfig, engine: Any, material: Material, loop: int) -> Asker:
    """Asks as the loop does. Loop 0 and 1 ask the base model; the model of loop n is asked as in loop n + 1."""
    warm = config.temperature if config.temperature is not None else 0.0 if config.method == "star" else 0.7
    asking = Asking(
        config.method, config.rationalise, config.samples, warm, config.top_p, config.agreement,
        config.max_tokens or material.task.max_tokens, stream_seed(config.seed, "star", loop) % 2**31, config.ask_batch,
    )  # fmt: skip
    return Asker(engine, material.task, material.shown[: _shots(config, loop)], asking)


def _loaded(config: StarConfig, path: Any) -> tuple[Any, Any]:
    model, tokenizer = load_model(path)
    ensure_pad(tokenizer)
    if config.chat:
        ensure_chat(tokenizer)
    resize_for(model, tokenizer)
    return model, tokenizer


def _base(config: StarConfig, material: Material) -> dict[str, Any]:
    """The base model's accuracies."""
    model, tokenizer = _loaded(config, config.model)
    asker = _asker(config, LocalEngine(model.eval(), tokenizer), material, 1)
    out = accuracy(asker, material.held, "base held-out")
    return {**out, **(accuracy(asker, material.test, "base test", "test_accuracy") if material.test else {})}


def _loop(config: StarConfig, run: RunDir, inner: RunDir, material: Material, loop: int) -> dict[str, Any]:
    """Rationales of the model before, the base model fine-tuned on those that pass, its accuracy."""
    base, before = config.model, run.path / _name(loop - 1) if loop > 1 else config.model
    began = time.perf_counter()
    rows, asked = _rationales(config, inner, material, loop, before)
    told = counted(rows, config.method)
    asking_seconds = time.perf_counter() - began
    pairs = training_texts(rows, material.train, material.task, config.method)
    if not pairs:
        raise nothing_learned(rows, f"{inner.path}")
    model, tokenizer = _loaded(config, base if config.from_base else before)
    longest = min(config.max_length, LocalEngine(model, tokenizer).context_length)
    encoded = encode_texts(pairs, tokenizer, longest)
    if not encoded:
        raise DataError(f"{inner.path}: all {len(pairs)} rationales are longer than {longest} tokens; raise max_length")
    steps = steps_of(loop, config.start_steps, config.grow, config.steady_steps)
    began = time.perf_counter()
    seed = stream_seed(config.seed, "rows", loop) % 2**31
    last = train(
        model, causal, RowLoader(encoded, batch_size=config.batch_size, seed=seed, pad_id=tokenizer.pad_token_id),
        Optimizers(model, config.optimizer), inner, steps=steps, precision=config.precision,
        save_every=config.save_every, log_every=max(1, steps // 10),
    )  # fmt: skip
    save_model(model, tokenizer, inner.path / "model")
    training_seconds = time.perf_counter() - began
    asker = _asker(config, LocalEngine(model.eval(), tokenizer), material, loop + 1)
    scores = accuracy(asker, material.held, f"{inner.path.name} held-out")
    return {
        "loop": loop, **told, **scores, "rows": len(encoded), "rows_too_long": len(pairs) - len(encoded),
        "steps": steps, "loss": last["loss"], "demonstrations": asked, "asking_seconds": round(asking_seconds, 2),
        "training_seconds": round(training_seconds, 2),
    }  # fmt: skip


def _rationales(
    config: StarConfig, inner: RunDir, material: Material, loop: int, before: Any
) -> tuple[list[dict[str, Any]], int]:
    """The loop's rows, and how many demonstrations there were to show."""
    engine: Any
    if loop == 1 and config.generator is not None:
        engine = load(config.generator, model=config.generator_model)
    else:
        model, tokenizer = _loaded(config, before)
        engine = LocalEngine(model.eval(), tokenizer)
    asker = _asker(config, engine, material, loop)
    numbers = _chosen(config, material.train, loop)
    reseed(config.seed, "star", loop)
    file = write_rationales(
        inner.path, asker, material.train, numbers, {"run": inner.fingerprint}, f"{inner.path.name} rationales"
    )
    return read_rationales(file), len(asker.shown)


def _chosen(config: StarConfig, items: list[Item], loop: int) -> list[int]:
    """Numbers of the questions of a loop, drawn without replacement; all in order where there are no more."""
    if len(items) <= config.per_loop:
        return list(range(len(items)))
    order = torch.randperm(len(items), generator=generator(config.seed, "questions", loop))
    return order[: config.per_loop].tolist()


def _show(run: RunDir, config: StarConfig, made: dict[str, Any], loop: int) -> None:
    seconds = made["asking_seconds"] + made["training_seconds"]
    left = sum(
        seconds * steps_of(n, config.start_steps, config.grow, config.steady_steps) / made["steps"]
        for n in range(loop + 1, config.loops + 1)
    )
    console.print(
        f"[bold]{run.path.name}[/] loop {loop}/{config.loops}  accuracy {made['accuracy']:.3f}  solved "
        f"{made['solved']:.3f}  rationalised {made['rationalised']:.3f}  {seconds:.0f} s  ETA at most {left:.0f}s"
    )
