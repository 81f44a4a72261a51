"""Supervised fine-tuning: cross-entropy on the assistant's tokens only."""

from __future__ import annotations

from typing import Any

from tutelage.core.config import StageConfig
from tutelage.core.errors import DataError
from tutelage.core.rundir import RunDir
from tutelage.loss.lm import cross_entropy_sum
from tutelage.model.hub import add_lora, load_model, resize_for, save_model
from tutelage.text.chat import as_messages, encode_chat, ensure_chat
from tutelage.text.loader import RowLoader
from tutelage.text.tokenizer import ensure_pad
from tutelage.train.loop import train
from tutelage.train.objectives import causal
from tutelage.train.optim import OptimConfig, Optimizers
from tutelage.train.sources import conversations


class SftConfig(StageConfig):
    model: str
    data: str = "schoolroom:demo"
    rows: int = 20_000
    steps: int = 180
    batch_size: int = 128
    max_length: int = 256
    precision: str = "auto"
    method: str = "full"
    """full | lora"""
    eval_every: int = 60
    save_every: int = 100
    optimizer: OptimConfig = OptimConfig(name="muon", lr=1e-3, muon_lr=3e-3)


def encode_rows(rows: list[dict[str, Any]], tokenizer: Any, max_length: int) -> list[dict[str, list[int]]]:
    """Rows to token ids and labels; rows without an assistant token are left out."""
    out = []
    for row in rows:
        ids, mask = encode_chat(tokenizer, as_messages(row), max_length)
        if any(mask):
            out.append({"input_ids": ids, "labels": [t if m else -100 for t, m in zip(ids, mask)]})
    return out


def run(config: SftConfig, run: RunDir) -> dict[str, Any]:
    model, tokenizer = load_model(config.model)
    ensure_pad(tokenizer)
    ensure_chat(tokenizer)
    resize_for(model, tokenizer)
    if config.method == "lora":
        model = add_lora(model)
    rows = encode_rows(conversations(config.data, "train", config.rows, config.seed), tokenizer, config.max_length)
    if not rows:
        raise DataError(f"{config.data}: no row has an assistant turn within max_length={config.max_length}")
    from_world = config.data.startswith("schoolroom:")
    split = max(1, len(rows) // 20)
    held = (
        encode_rows(conversations(config.data, "heldout", 500, config.seed + 1), tokenizer, config.max_length)
        if from_world
        else rows[:split]
    )
    rows = rows if from_world else rows[split:]
    loader = RowLoader(rows, batch_size=config.batch_size, seed=config.seed, pad_id=tokenizer.pad_token_id)

    def evaluate() -> dict[str, Any]:
        total, count = 0.0, 0
        for batch in RowLoader(held, batch_size=64, pad_id=tokenizer.pad_token_id, epochs=1, shuffle=False):
            s, n = cross_entropy_sum(
                model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits,
                batch["labels"],
            )
            total, count = total + float(s.detach()), count + int(n)
        return {"val_loss": total / max(1, count)}

    before = evaluate()["val_loss"]
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
    )
    if config.method == "lora":
        model = model.merge_and_unload()  # type: ignore[operator]
    save_model(model, tokenizer, run.path / "model")
    return {"val_loss_before": before, **{k: last[k] for k in ("loss", "val_loss") if k in last}}
