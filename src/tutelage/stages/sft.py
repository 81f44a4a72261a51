"""Supervised fine-tuning: cross-entropy on the assistant's tokens only. Encoder-decoders: train/seq2seq.py."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from tutelage.core.config import StageConfig
from tutelage.core.errors import ConfigError, DataError
from tutelage.core.records import BadRows
from tutelage.core.rundir import RunDir
from tutelage.engine import LocalEngine
from tutelage.engine.support import support
from tutelage.loss.lm import token_logprobs
from tutelage.model.hub import add_lora, load_model, resize_for, save_model
from tutelage.text.chat import as_messages, encode_chats, ensure_chat, turn_end_id
from tutelage.text.corpus import corpus_files
from tutelage.text.loader import BlockLoader, Mixed, RowLoader
from tutelage.text.shards import TokenShards
from tutelage.text.tokenizer import ensure_pad
from tutelage.train.evaluate import text_loss
from tutelage.train.loop import Objective, train
from tutelage.train.objectives import WithText, causal
from tutelage.train.optim import OptimConfig, Optimizers
from tutelage.train.samples import sampler
from tutelage.train.seq2seq import is_encoder_decoder, refuse, tune
from tutelage.train.sources import conversations, is_world


class SftConfig(StageConfig):
    model: str
    """Base model: a run directory, folder or hub id."""
    data: str = "schoolroom:demo"
    """Dialogues: a file or folder, or the embedded world."""
    held_out: str | list[str] | None = None
    """What the loss is measured on: another file or folder, or patterns of file names inside `data` (["trec_*"]: whole
    tasks that training never sees). Without it, a tenth of the questions, chosen by a hash of the question."""
    held_rows: int = Field(500, ge=1)
    """At most this many held-out rows, spread evenly over them all."""
    rows: int = Field(20_000, ge=1)
    """At most this many rows; where `held_out` is a list of patterns, an equal share of each file."""
    steps: int = Field(180, ge=1)
    """Optimiser steps."""
    batch_size: int = Field(128, ge=1)
    """Rows per step."""
    max_length: int = Field(256, ge=2)
    """Longest row in tokens, at most the model's context."""
    packing: bool = False
    """A step's rows one behind another in one row, none attending to another, instead of padded to the longest: quicker
    where lengths differ much. For models whose attention follows a plan."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU and on a CPU that was measured to be quicker with it."""
    ptx_data: str | None = None
    """Run directory of `prepare` whose text is mixed in, so that the model does not forget it."""
    ptx_coef: float = Field(0.1, ge=0)
    """Weight of the text's loss."""
    ptx_batch: int = Field(16, ge=1)
    """Blocks of text per step."""
    ptx_block: int = Field(96, ge=2)
    """Tokens of a block."""
    method: Literal["full", "lora"] = "full"
    """lora: adapters are trained and merged into the saved model."""
    eval_every: int = Field(60, ge=0)
    """Steps between evaluations on held-out data; there is always one at the end."""
    save_every: int = Field(100, ge=0)
    """Steps between checkpoints; 0: only at the end and when stopped."""
    optimizer: OptimConfig = OptimConfig(name="muon", lr=1e-3, muon_lr=3e-3)


Rows = list[dict[str, Any]]
Encoded = list[dict[str, list[int]]]


def encode_rows(rows: Rows, tokenizer: Any, max_length: int) -> Encoded:
    """Rows to token ids and labels; rows without an assistant token within `max_length` are left out."""
    out = []
    for start in range(0, len(rows), 1024):
        chats = [as_messages(row) for row in rows[start : start + 1024]]
        for ids, mask in encode_chats(tokenizer, chats, max_length):
            if any(mask):
                out.append({"input_ids": ids, "labels": [t if m else -100 for t, m in zip(ids, mask)]})
    return out


def divided(config: SftConfig, bad: BadRows) -> tuple[Rows, Rows]:
    """(training rows, held-out rows): no question of one is in the other."""
    if is_world(config.data):
        held = conversations(config.data, "heldout", config.held_rows, config.seed + 1)
        return conversations(config.data, "train", config.rows, config.seed), held
    if isinstance(config.held_out, str):
        rows = conversations(config.data, "all", config.rows, config.seed, bad)
        held = conversations(config.held_out, "all", config.rows, config.seed, bad)
    elif config.held_out:
        files = corpus_files(config.data)
        apart = [f for f in files if any(fnmatch(f.name, pattern) for pattern in config.held_out)]
        if not apart or len(apart) == len(files):
            found = "all" if apart else "none"
            raise DataError(f"{config.data}: held_out={config.held_out} matches {found} of its {len(files)} files")
        rest = [f for f in files if f not in apart]
        rows = _share(rest, config.rows, config.seed, bad)
        held = _share(apart, config.held_rows, config.seed, bad)
    else:
        rows = conversations(config.data, "train", config.rows, config.seed, bad)
        held = conversations(config.data, "heldout", config.rows, config.seed, bad)
    asked = {_question(row) for row in held}
    rows = [row for row in rows if _question(row) not in asked]
    return rows, held[:: -(-len(held) // config.held_rows)]


def _share(files: list[Path], limit: int, seed: int, bad: BadRows) -> Rows:
    """An equal share of each file; sets cut by task have files without a row."""
    files = [file for file in files if file.stat().st_size]
    each = -(-limit // max(1, len(files)))
    return [row for file in files for row in conversations(str(file), "all", each, seed, bad)][:limit]


def _question(row: dict[str, Any]) -> str:
    return "\0".join(m["content"] for m in as_messages(row) if m["role"] != "assistant")


def _asked(row: dict[str, Any]) -> list[dict[str, str]]:
    """The dialogue up to its last answer."""
    messages = as_messages(row)
    last = max(i for i, m in enumerate(messages) if m["role"] == "assistant")
    return messages[:last]


def unigram_loss(train: Encoded, held: Encoded, vocab: int) -> float:
    """Nats per held-out answer token of a model that knows only how often each token stands in training answers."""
    counts = np.ones(vocab)
    for row in train:
        np.add.at(counts, [t for t in row["labels"] if t != -100], 1)
    nats = -np.log(counts / counts.sum())
    answers = [t for row in held for t in row["labels"] if t != -100]
    return float(nats[answers].mean())


@torch.no_grad()
def answer_loss(model: nn.Module, rows: Encoded, pad_id: int, end_id: int) -> dict[str, Any]:
    """Nats per answer token: "val_loss" with each answer's end token, "val_content_loss" without it.

    A base model has never seen the end token, so the first alone would flatter what fine-tuning gives.
    """
    training = model.training
    model.eval()
    sums = {"val_loss": 0.0, "val_content_loss": 0.0}
    counts = dict.fromkeys(sums, 0)
    for batch in RowLoader(rows, batch_size=64, pad_id=pad_id, epochs=1, shuffle=False):
        ids = batch["input_ids"]
        logits = model(input_ids=ids, attention_mask=batch["attention_mask"], use_cache=False).logits
        nats = -token_logprobs(logits, ids)
        said = batch["labels"][:, 1:] != -100
        for key, mask in (("val_loss", said), ("val_content_loss", said & (ids[:, 1:] != end_id))):
            sums[key] += float(nats[mask].sum())
            counts[key] += int(mask.sum())
    model.train(training)
    return {key: sums[key] / max(1, counts[key]) for key in sums}


def run(config: SftConfig, run: RunDir) -> dict[str, Any]:
    if is_encoder_decoder(config.model):
        return _encoder_decoder(config, run)
    model, tokenizer = load_model(config.model)
    ensure_pad(tokenizer)
    ensure_chat(tokenizer)
    resize_for(model, tokenizer)
    if config.method == "lora":
        model = add_lora(model)
    train_rows, held_rows = divided(config, run.bad_rows)
    longest = min(config.max_length, LocalEngine(model, tokenizer).context_length)
    rows, held = (encode_rows(part, tokenizer, longest) for part in (train_rows, held_rows))
    for name, part in (("training", rows), ("held-out", held)):
        if not part:
            raise DataError(f"{config.data}: no {name} row has an answer within {longest} tokens; raise max_length")
    if config.packing and not (found := support(model)).plans:
        raise ConfigError(f"packing=true cannot be used with {config.model}: {found.reason}; leave it out")
    loader: Any = RowLoader(
        rows, batch_size=config.batch_size, seed=config.seed, pad_id=tokenizer.pad_token_id, flat=config.packing
    )
    objective: Objective = causal
    shards = None
    if config.ptx_data:
        folder = Path(config.ptx_data)
        shards = TokenShards(folder / "validation", tokenizer)
        if config.ptx_coef:
            text = TokenShards(folder / "train", tokenizer)
            loader = Mixed(loader, BlockLoader(text, config.ptx_batch, config.ptx_block, config.seed))
            objective = WithText(config.ptx_coef)

    def evaluate() -> dict[str, Any]:
        found = answer_loss(model, held, tokenizer.pad_token_id, turn_end_id(tokenizer))
        return found | ({"val_text_loss": text_loss(model, shards, config.ptx_block)} if shards else {})

    asked = [_asked(row) for row in held_rows[:3]]
    before = evaluate()
    last = train(
        model,
        objective,
        loader,
        Optimizers(model, config.optimizer),
        run,
        steps=config.steps,
        precision=config.precision,
        evaluate=evaluate,
        sample=sampler(LocalEngine(model, tokenizer), asked, max_tokens=48),
        eval_every=config.eval_every,
        save_every=config.save_every,
    )
    if config.method == "lora":
        model = model.merge_and_unload()  # type: ignore[operator]
    save_model(model, tokenizer, run.path / "model")
    return {
        "rows": len(rows),
        "rows_too_long": len(train_rows) - len(rows),
        "held_rows": len(held),
        "val_loss_unigram": unigram_loss(rows, held, len(tokenizer)),
        **{f"{key}_before": value for key, value in before.items()},
        **{k: last[k] for k in ("loss", *before) if k in last},
    }


def _encoder_decoder(config: SftConfig, run: RunDir) -> dict[str, Any]:
    """Flan-T5's way: the question through the encoder, the answer from the decoder, no chat template."""
    refuse(packing=(config.packing, False), method=(config.method, "full"), ptx_data=(config.ptx_data, None))
    keys = ("max_length", "batch_size", "seed", "steps", "precision", "eval_every", "save_every", "optimizer")
    rows, held = divided(config, run.bad_rows)
    return tune(config.model, rows, held, run, **{key: getattr(config, key) for key in keys})
