"""Pretraining over token shards: next-token prediction, masked LM, span corruption or prefix LM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from tutelage.core.errors import ConfigError
from tutelage.core.rundir import RunDir
from tutelage.engine import LocalEngine, SamplingParams
from tutelage.engine.masked import room
from tutelage.model.hub import create_model, load_model, load_tokenizer, parameter_count, save_model, settle_unseen
from tutelage.text.loader import BlockLoader, share
from tutelage.text.shards import TokenShards
from tutelage.train.evaluate import bits_per_byte, objective_loss, text_loss, whole_text_nats
from tutelage.train.guard import TrainingKeys
from tutelage.train.loop import train
from tutelage.train.objectives import causal
from tutelage.train.optim import OptimConfig, Optimizers
from tutelage.train.parallel import ParallelKeys, require_one
from tutelage.train.pretraining import Setting, check_preset, setting
from tutelage.train.samples import sampler
from tutelage.train.sources import world


class PretrainConfig(TrainingKeys, ParallelKeys):
    data: str
    """Run directory of `prepare`."""
    tokenizer: str
    """Run directory of `tokenizer`, or a folder that holds one."""
    model: str = "preset:laptop-1m"
    """preset:NAME starts from scratch; a folder or hub id continues from there."""
    objective: Literal["causal", "masked", "span", "prefix"] = "causal"
    """causal: a decoder; masked: BERT and RoBERTa; span: T5's span corruption; prefix: an encoder reads the beginning
    and its decoder writes the rest."""
    next_sentence: bool = False
    """masked: BERT's segment pairs and next-sentence loss; false: full rows of text, as RoBERTa has them."""
    mask_rate: float = Field(0.15, gt=0, lt=1)
    """masked and span: share of the tokens that are predicted."""
    span_length: float = Field(3.0, ge=1)
    """span: mean length of a corrupted span."""
    block_size: int = Field(96, ge=2)
    """Tokens of a training sequence."""
    batch_size: int = Field(24, ge=1)
    """Sequences per step."""
    steps: int = Field(1000, ge=1)
    """Optimiser steps."""
    order: Literal["shuffled", "file"] = "shuffled"
    """file: the shards' own order, for data laid out as a curriculum."""
    max_length: int = Field(256, ge=2)
    """Context of a model made from scratch."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU and on a CPU that was measured to be quicker with it."""
    probe: str | None = None
    """The world whose question-answer probe is asked at every evaluation, e.g. schoolroom:demo."""
    stop_at_probe: float | None = None
    """Stop once the probe's accuracy reaches this."""
    eval_every: int = Field(200, ge=0)
    """Steps between evaluations on held-out data; there is always one at the end."""
    save_every: int = Field(500, ge=0)
    """Steps between checkpoints; 0: only at the end and when stopped."""
    optimizer: OptimConfig = OptimConfig(name="muon", lr=6e-3, muon_lr=0.02, weight_decay=0.1)


LEAST_BLOCK = 8
"""Tokens of a row that is corrupted."""
SAMPLE_START = 8
"""Tokens of a held-out document that a sample continues."""


def run(config: PretrainConfig, run: RunDir) -> dict[str, Any]:
    check_preset(config.objective, config.model, config.next_sentence)
    tokenizer = load_tokenizer(config.tokenizer)
    if config.objective != "causal":
        return _denoise(config, run, tokenizer)
    if config.model.startswith("preset:"):
        model = create_model(config.model, tokenizer, config.max_length, config.seed)
    else:
        model, tokenizer = load_model(config.model, tokenizer)
    data = Path(config.data)
    shards = TokenShards(data / "train", tokenizer)
    shape = (config.batch_size, config.block_size, config.seed)
    loader = BlockLoader(shards, *shape, shuffle=config.order == "shuffled", **share())
    held = TokenShards(data / "validation", tokenizer)
    engine = LocalEngine(model, tokenizer)
    _fits(config, engine.context_length)

    def evaluate() -> dict[str, Any]:
        out = {"val_loss": text_loss(model, held, config.block_size)}
        if config.probe:
            questions = world(config.probe).probe(200)
            answers = engine.generate([q for q, _ in questions], SamplingParams(max_tokens=6, temperature=0.0))
            right = [a.completions[0].text.strip().startswith(want) for a, (_, want) in zip(answers, questions)]
            out["probe"] = sum(right) / len(right)
        return out

    documents = min(3, len(held.documents) - 1)
    starts = [held.document(i)[:SAMPLE_START].tolist() for i in range(documents)]
    stop = config.stop_at_probe
    last = train(
        model,
        causal,
        loader,
        Optimizers(model, config.optimizer),
        run,
        steps=config.steps,
        precision=config.precision,
        evaluate=evaluate,
        eval_every=config.eval_every,
        save_every=config.save_every,
        log_every=50,
        sample=sampler(engine, starts, max_tokens=32, temperature=1.0, seed=config.seed),
        stop_when=(lambda row: row.get("probe", 0.0) >= stop) if stop else None,
        parallel=config.parallel,
    )
    if config.model.startswith("preset:"):
        settle_unseen(model, torch.from_numpy(shards.counts() > 0))
    save_model(model, tokenizer, run.path / "model")
    out: dict[str, Any] = {"parameters": parameter_count(model)}
    out.update({k: last[k] for k in ("loss", "val_loss", "probe") if k in last})
    size = _recorded(data, "validation_bytes")
    if size:  # the whole held-out text, in a unit that models of any vocabulary share
        nats = whole_text_nats(model, held, config.block_size)
        out["bits_per_byte"] = bits_per_byte(nats, size)
    return out


def _fits(config: PretrainConfig, context: int) -> None:
    if config.block_size > context:
        key = "max_length" if config.model.startswith("preset:") else "the model's context"
        raise ConfigError(f"block_size={config.block_size} exceeds {key} of {context}; lower block_size")


def _denoise(config: PretrainConfig, run: RunDir, tokenizer: Any) -> dict[str, Any]:
    """Train a masked LM or an encoder-decoder."""
    require_one(f"objective={config.objective}")
    if config.probe:
        raise ConfigError(f"probe={config.probe} asks a causal LM, and objective={config.objective}; leave probe out")
    if config.block_size < LEAST_BLOCK:
        raise ConfigError(f"block_size={config.block_size}: expected at least {LEAST_BLOCK}, special tokens included")
    assert config.objective != "causal"
    made = setting(
        config.objective, config.model, tokenizer, config.max_length, config.block_size, config.seed,
        next_sentence=config.next_sentence, rate=config.mask_rate, span=config.span_length,
    )  # fmt: skip
    model, tokenizer = made.model, made.tokenizer
    engine = LocalEngine(model, tokenizer)
    _fits(config, room(engine) if config.objective == "masked" else engine.context_length)
    data = Path(config.data)
    shards, held = (TokenShards(data / part, tokenizer) for part in ("train", "validation"))
    shuffle = config.order == "shuffled"
    starts = [] if config.objective == "masked" else _encoder_inputs(made, held, config.block_size)
    last = train(
        model,
        made.loss,
        made.loader(shards, config.batch_size, config.block_size, config.seed, shuffle),
        Optimizers(model, config.optimizer),
        run,
        steps=config.steps,
        precision=config.precision,
        evaluate=lambda: objective_loss(model, made.loss, made.held(held, config.batch_size, config.block_size)),
        eval_every=config.eval_every,
        save_every=config.save_every,
        log_every=50,
        sample=sampler(engine, starts, max_tokens=32, seed=config.seed) if starts else None,
    )
    if config.model.startswith("preset:"):
        settle_unseen(model, made.seen(shards.counts(), config.block_size))
    save_model(model, tokenizer, run.path / "model")
    found = {key: value for key, value in last.items() if key == "loss" or key.startswith("val_")}
    return {"parameters": parameter_count(model), "objective": config.objective, **found}


def _encoder_inputs(made: Setting, held: TokenShards, block_size: int) -> list[list[int]]:
    """What the encoder reads in three rows of held-out text, for samples."""
    batch = next(iter(made.held(held, 3, block_size)))
    return [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]


def _recorded(data: Path, key: str) -> int:
    """A number of `prepare`'s summary, 0 where there is none (shards written by other means)."""
    file = data / "summary.json"
    return int(json.loads(file.read_text(encoding="utf-8")).get(key, 0)) if file.is_file() else 0
