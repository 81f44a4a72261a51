"""Reward model from rankings (InstructGPT sec. 3.5): K forwards per prompt, all pairs in one batch element."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from tutelage.core.config import StageConfig
from tutelage.core.rundir import RunDir
from tutelage.model.adapters import Adapters, LoraSettings, unload
from tutelage.model.heads import RewardModel, create_reward_model
from tutelage.model.hub import load_model
from tutelage.schoolroom.judge import gold
from tutelage.schoolroom.rows import item_from_row
from tutelage.train.actors import ADAPTER_FILE
from tutelage.train.loop import train
from tutelage.train.objectives import kwise
from tutelage.train.optim import OptimConfig, Optimizers
from tutelage.train.reward_data import (
    RankingLoader,
    add_features,
    collate_rankings,
    encode_ranking,
    read_rankings,
)
from tutelage.train.reward_report import Truth, reward_report


class RewardConfig(StageConfig):
    model: str
    """The SFT model."""
    data: str
    """A rankings file, or the run directory of `rank`."""
    features: bool = True
    """Log-prob features of the frozen SFT model beside the hidden state."""
    steps: int = Field(150, ge=1)
    """Optimiser steps."""
    batch_size: int = Field(32, ge=1)
    """Prompts per step."""
    max_length: int = Field(256, ge=2)
    """Longest row in tokens."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU and on a CPU that was measured to be quicker with it."""
    save_every: int = Field(100, ge=0)
    """Steps between checkpoints; 0: only at the end and when stopped."""
    feature_lr: float = Field(8.0, ge=0)
    """Learning rate of the feature head as a multiple of the rest."""
    method: Literal["full", "lora"] = "full"
    """lora: the trunk stays frozen; the adapter is also kept apart, for PPO on one shared trunk."""
    lora: LoraSettings = LoraSettings(r=8)
    optimizer: OptimConfig = OptimConfig(name="adamw", lr=1.5e-3, eps=1e-5)


def run(config: RewardConfig, run: RunDir) -> dict[str, Any]:
    """Train, measure on held-out rankings, shift so that demonstrations score 0, save."""
    sft, tokenizer = load_model(config.model)
    sft.eval()
    rows, held = _data(config)
    model = create_reward_model(sft, tokenizer, seed=config.seed, features=config.features)
    adapters = None
    if config.method == "lora":
        adapters = Adapters(model.trunk, ["reward"], config.lora, config.seed)
        adapters.use("reward")

    def encode(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        encoded = [encode_ranking(row, tokenizer, config.max_length) for row in rows]
        if config.features:
            add_features(encoded, sft, tokenizer.pad_token_id)
        return encoded

    loader = RankingLoader(encode(rows), config.batch_size, tokenizer.pad_token_id, config.seed)
    optimizers = Optimizers(model, config.optimizer, head_lr={"features": config.feature_lr})
    last = train(
        model,
        kwise,
        loader,
        optimizers,
        run,
        steps=config.steps,
        precision=config.precision,
        save_every=config.save_every,
    )
    model.eval()
    scorer = _Scorer(model, encode, tokenizer.pad_token_id)
    report = reward_report(held, scorer(held), [_truth(row) for row in held])
    model.reward_shift = float(_demonstration_mean(scorer, held))
    _save(model, adapters, run.path / "model", tokenizer)
    return {"loss": last["loss"], **report, "reward_shift": model.reward_shift, "train_prompts": len(rows)}


def _data(config: RewardConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and held-out rankings; of a single file every tenth prompt is held out."""
    folder = Path(config.data)
    if folder.is_dir():
        return read_rankings(folder / "rankings.jsonl"), read_rankings(folder / "heldout.jsonl")
    rows = read_rankings(folder)
    held = rows[::10]
    return [row for i, row in enumerate(rows) if i % 10] or rows, held


def _truth(row: dict[str, Any]) -> Truth | None:
    """What the embedded world's judge says of the row's responses; None for other data."""
    if "item" not in row:
        return None
    judged = [gold(item_from_row(row), text) for text in row["responses"]]
    return Truth([j.total for j in judged], [j.correct >= 0.5 for j in judged])


class _Scorer:
    """Scores of all responses of each row, several rows a forward."""

    def __init__(self, model: RewardModel, encode: Any, pad_id: int, rows: int = 16) -> None:
        self.model, self.encode, self.pad_id, self.rows = model, encode, pad_id, rows

    @torch.no_grad()
    def __call__(self, rows: list[dict[str, Any]]) -> list[list[float]]:
        out: list[list[float]] = []
        encoded = self.encode(rows)
        for i in range(0, len(encoded), self.rows):
            part = encoded[i : i + self.rows]
            batch = collate_rankings(part, self.pad_id)
            scores = self.model(batch["input_ids"], batch["attention_mask"], features=batch.get("features")).float()
            table = scores.view(len(part), -1).tolist()
            out += [line[: len(row["ids"])] for line, row in zip(table, part)]
        return out


def _demonstration_mean(scorer: _Scorer, rows: list[dict[str, Any]]) -> float:
    """Mean score of demonstrations, which the shift moves to 0 (Stiennon et al. 2020); the embedded world knows them,
    elsewhere a row's "demonstration" or its best-ranked response stands in."""
    shown = []
    for row in rows:
        text = item_from_row(row).good if "item" in row else row.get("demonstration")
        text = text if isinstance(text, str) else row["responses"][row["ranking"][0][0]]
        shown.append({"prompt": row["prompt"], "responses": [text], "ranking": [[0]]})
    return sum(score[0] for score in scorer(shown)) / len(shown)


def _save(model: RewardModel, adapters: Adapters | None, folder: Path, tokenizer: Any) -> None:
    if adapters is None:
        model.save(folder, tokenizer)
        return
    plain = RewardModel(unload(model.model, "reward"), model.features, model.reward_shift)
    plain.save(folder, tokenizer, {ADAPTER_FILE: adapters.state("reward")})
