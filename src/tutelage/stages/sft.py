"""Supervised fine-tuning: cross-entropy on the assistant's tokens only, of a whole model or an adapter on it.

Encoder-decoders: train/seq2seq.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, Field, model_validator
from torch import nn

from tutelage.core.errors import ConfigError, DataError
from tutelage.core.records import BadRows
from tutelage.core.rundir import RunDir
from tutelage.engine import LocalEngine
from tutelage.engine.support import support
from tutelage.model.adapters import LoraSettings
from tutelage.model.attention import recompute_activations
from tutelage.model.hub import find_model_dir, is_adapter, kind_of, load_model, parameter_count, resize_for, save_model
from tutelage.model.lm_head import LMHead, lm_head
from tutelage.model.tuning import LEARNED_PROMPTS, Method, PromptSettings, add_adapter, check_merge, save_adapter
from tutelage.text.chat import as_messages, chat_tokens, encode_chats, ensure_chat, turn_end_id
from tutelage.text.corpus import corpus_files
from tutelage.text.loader import BlockLoader, Mixed, RowLoader, pack_rows, share
from tutelage.text.shards import TokenShards
from tutelage.text.tokenizer import ensure_pad
from tutelage.train.early_stop import LowestKept
from tutelage.train.evaluate import text_loss
from tutelage.train.guard import TrainingKeys
from tutelage.train.loop import Objective, train
from tutelage.train.objectives import Chunked, WithText, answer_nats, causal
from tutelage.train.optim import OptimConfig, Optimizers
from tutelage.train.parallel import ParallelKeys, require_one
from tutelage.train.samples import sampler
from tutelage.train.seq2seq import refuse, tune
from tutelage.train.sources import conversations, is_world


class SftConfig(TrainingKeys, ParallelKeys):
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
    """Rows per step (with block_size: blocks)."""
    max_length: int = Field(256, ge=2)
    """Longest row in tokens, at most the model's context."""
    packing: bool = False
    """A step's rows one behind another in one row, none attending to another, instead of padded to the longest: quicker
    where lengths differ much. For models whose attention follows a plan."""
    block_size: int | None = Field(None, ge=2)
    """With packing: rows are first put into blocks of so many tokens, best fit decreasing, and batch_size counts
    blocks, so that every step has nearly the same number of tokens. At least the longest row."""
    checkpointing: bool = False
    """Activations are computed again in the backward pass instead of kept: less memory, more time."""
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
    method: Method = "full"
    """full: every weight; lora, dora, ia3: small updates of a frozen model; prompt, ptuning, prefix: virtual tokens
    before every text. All but full save an adapter in peft's format."""
    lora: LoraSettings = LoraSettings(r=8)
    prompt: PromptSettings = PromptSettings(tokens=16)
    merge: bool = False
    """lora, dora, ia3: the adapter is merged, and a whole model saved."""
    eval_every: int = Field(60, ge=0)
    """Steps between evaluations on held-out data; there is always one at the end."""
    patience: int = Field(0, ge=0)
    """Evaluations without a lower val_loss after which training ends; the model of the lowest is saved. 0: all steps
    are made, and the last model is saved."""
    save_every: int = Field(100, ge=0)
    """Steps between checkpoints; 0: only at the end and when stopped."""
    optimizer: OptimConfig = OptimConfig(name="muon", lr=1e-3, muon_lr=3e-3)
    """Adapters: AdamW, lora and dora at lr 2e-3, ia3 1e-2, prompt and prefix 3e-2, ptuning 3e-3."""

    @classmethod
    def tables(cls, given: Mapping[str, Any]) -> dict[str, BaseModel]:
        rate = ADAPTER_RATES.get(given.get("method", "full"))
        return {"optimizer": OptimConfig(name="adamw", lr=rate)} if rate else {}

    @model_validator(mode="after")
    def _fits(self) -> SftConfig:
        if self.block_size and not self.packing:
            raise ValueError("block_size needs packing=true")
        if self.patience and not self.eval_every:
            raise ValueError("patience needs eval_every, the steps between evaluations")
        return self


ADAPTER_RATES = {"lora": 2e-3, "dora": 2e-3, "ia3": 1e-2, "prompt": 3e-2, "ptuning": 3e-3, "prefix": 3e-2}
"""Peak learning rates of adapters: fewer parameters take larger steps."""

EVALUATED_TOKENS = 8192
"""Tokens of a batch of held-out rows: measuring the loss should not need more memory than training."""

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
def answer_loss(
    model: nn.Module, rows: Encoded, pad_id: int, end_id: int, head: LMHead | None = None
) -> dict[str, Any]:
    """Nats per answer token: "val_loss" with each answer's end token, "val_content_loss" without it.

    A base model has never seen the end token, so the first alone would flatter what fine-tuning gives. With `head`
    (lm_head) no batch's logits are made at once.
    """
    training = model.training
    model.eval()
    sums = {"val_loss": 0.0, "val_content_loss": 0.0}
    counts = dict.fromkeys(sums, 0)
    rows = sorted(rows, key=lambda row: len(row["input_ids"]))  # rows of a like length together: less padding
    many = min(64, max(1, EVALUATED_TOKENS // len(rows[-1]["input_ids"])))
    for batch in RowLoader(rows, batch_size=many, pad_id=pad_id, epochs=1, shuffle=False):
        nats, labels = answer_nats(model, batch, head)
        for key, mask in (("val_loss", labels >= 0), ("val_content_loss", labels != end_id)):
            sums[key] += float(nats[mask].sum())
            counts[key] += int(mask.sum())
    model.train(training)
    return {key: sums[key] / max(1, counts[key]) for key in sums}


class Tuned:
    """The model as it is trained, and how it is saved."""

    def __init__(self, config: SftConfig) -> None:
        self.config = config
        check_merge(config.method, config.merge)
        found = find_model_dir(config.model)
        if found and is_adapter(found) and config.method != "full" and not config.merge:
            raise ConfigError(
                f"model={config.model} is itself an adapter, and peft cannot load an adapter on an adapter: "
                f"{'train on its base instead' if config.method in LEARNED_PROMPTS else 'add merge=true'}"
            )
        self.model, self.tokenizer = load_model(config.model)
        ensure_pad(self.tokenizer)
        ensure_chat(self.tokenizer)
        self.grew = resize_for(self.model, self.tokenizer)
        self.size = parameter_count(self.model)
        if config.checkpointing:
            self._recompute()
        if config.method != "full":
            tokens = chat_tokens(self.tokenizer)
            self.model = add_adapter(
                self.model, config.method, config.lora, config.prompt, self.tokenizer, tokens, config.seed
            )
        self.head = lm_head(self.model)

    def _recompute(self) -> None:
        try:
            recompute_activations(self.model)
        except ValueError as error:
            raise ConfigError(f"checkpointing=true cannot be used with {self.config.model}: {error}") from error

    def save(self, folder: Path) -> None:
        """Write the model, or the adapter that is not to be merged."""
        if self.config.method == "full" or self.config.merge:
            save_model(self.model, self.tokenizer, folder)
        else:
            save_adapter(self.model, self.tokenizer, folder, self.config.model, self.grew)


def _loader(config: SftConfig, tuned: Tuned, rows: Encoded) -> RowLoader:
    if config.packing and not (found := support(tuned.model)).plans:
        raise ConfigError(f"packing=true cannot be used with {config.model}: {found.reason}; leave it out")
    made: Any = rows
    if config.block_size:
        longest = max(len(row["input_ids"]) for row in rows)
        if longest > config.block_size:
            words = f"a row has {longest} tokens; raise it or lower max_length"
            raise ConfigError(f"block_size={config.block_size}: {words}")
        made = pack_rows(rows, config.block_size)
    pad = tuned.tokenizer.pad_token_id
    size = {"batch_size": config.batch_size, **share()}
    return RowLoader(made, seed=config.seed, pad_id=pad, flat=config.packing, **size)


def run(config: SftConfig, run: RunDir) -> dict[str, Any]:
    if kind_of(config.model) == "seq2seq":
        return _encoder_decoder(config, run)
    tuned = Tuned(config)
    model, tokenizer = tuned.model, tuned.tokenizer
    train_rows, held_rows = divided(config, run.bad_rows)
    engine = LocalEngine(model, tokenizer)
    longest = min(config.max_length, engine.context_length)
    rows, held = (encode_rows(part, tokenizer, longest) for part in (train_rows, held_rows))
    for name, part in (("training", rows), ("held-out", held)):
        if not part:
            raise DataError(f"{config.data}: no {name} row has an answer within {longest} tokens; raise max_length")
    loader: Any = _loader(config, tuned, rows)
    objective: Objective = Chunked(tuned.head) if tuned.head else causal
    shards = None
    if config.ptx_data:
        folder = Path(config.ptx_data)
        shards = TokenShards(folder / "validation", tokenizer)
        if config.ptx_coef:
            text = TokenShards(folder / "train", tokenizer)
            loader = Mixed(loader, BlockLoader(text, config.ptx_batch, config.ptx_block, config.seed, **share()))
            objective = WithText(config.ptx_coef, objective)

    def evaluate() -> dict[str, Any]:
        found = answer_loss(model, held, tokenizer.pad_token_id, turn_end_id(tokenizer), tuned.head)
        return found | ({"val_text_loss": text_loss(model, shards, config.ptx_block)} if shards else {})

    before = evaluate()
    lowest = LowestKept("val_loss", config.patience, run.path, tuned.save) if config.patience else None
    last = train(
        model,
        objective,
        loader,
        Optimizers(model, config.optimizer),
        run,
        steps=config.steps,
        precision=config.precision,
        evaluate=evaluate,
        sample=sampler(engine, [_asked(row) for row in held_rows[:3]], max_tokens=48),
        eval_every=config.eval_every,
        save_every=config.save_every,
        stop_when=lowest,
        beside={"lowest": lowest} if lowest else None,
        parallel=config.parallel,
    )
    if lowest:
        kept = lowest.finish(run.path / "model")
        last = {**kept, "kept_step": kept["step"], "stopped_early": last["step"] < config.steps}
    else:
        tuned.save(run.path / "model")
    return {
        "rows": len(rows),
        "rows_too_long": len(train_rows) - len(rows),
        "held_rows": len(held),
        "parameters": tuned.size,
        "trained_parameters": parameter_count(model, trainable=True),
        "val_loss_unigram": unigram_loss(rows, held, len(tokenizer)),
        **{f"{key}_before": value for key, value in before.items()},
        **{k: last[k] for k in ("loss", *before, "kept_step", "stopped_early") if k in last},
    }


def _encoder_decoder(config: SftConfig, run: RunDir) -> dict[str, Any]:
    """Flan-T5's way: the question through the encoder, the answer from the decoder, no chat template."""
    require_one("sft of an encoder-decoder")
    without = {"method": "full", "packing": False, "checkpointing": False, "ptx_data": None, "patience": 0}
    refuse(**{key: (getattr(config, key), value) for key, value in without.items()})
    keys = ("max_length", "batch_size", "seed", "steps", "precision", "eval_every", "save_every", "optimizer")
    rows, held = divided(config, run.bad_rows)
    return tune(config.model, rows, held, run, **{key: getattr(config, key) for key in keys})
