"""Reward model from rankings (InstructGPT sec. 3.5): K forwards per prompt, all pairs in one batch element."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tutelage.core.rundir import RunDir
from tutelage.model.adapters import Adapters, LoraSettings, unload
from tutelage.model.heads import RewardModel, create_reward_model
from tutelage.model.hub import load_model, resize_for
from tutelage.report.reward import save_report
from tutelage.text.chat import ensure_chat
from tutelage.text.rankings import join_annotators
from tutelage.text.tokenizer import ensure_pad
from tutelage.train.actors import ADAPTER_FILE
from tutelage.train.guard import TrainingKeys
from tutelage.train.loop import train
from tutelage.train.objectives import kwise
from tutelage.train.optim import OptimConfig, Optimizers
from tutelage.train.packs import takes_packs
from tutelage.train.parallel import ParallelKeys
from tutelage.train.reward_data import RankingLoader, encode_rankings, score_rankings
from tutelage.train.reward_details import full_report
from tutelage.train.reward_report import pair_accuracy, prefers_longer, truth_of
from tutelage.train.sources import demonstration, rankings

Rows = list[dict[str, Any]]


class RewardConfig(TrainingKeys, ParallelKeys):
    model: str
    """The SFT model."""
    data: str
    """Preferences: a file or folder of pairs or rankings, or the run directory of `rank`."""
    held_out: str | None = None
    """What is measured on: another file or folder. Without it, a tenth of the questions of a file or folder, chosen by
    a hash of the question."""
    rows: int = 100_000
    """At most this many training prompts."""
    held_rows: int = 1000
    """At most this many held-out prompts, spread evenly over them all."""
    features: bool = True
    """Log-prob features of the frozen SFT model beside the hidden state."""
    steps: int = Field(150, ge=1)
    """Optimiser steps."""
    batch_size: int = Field(32, ge=1)
    """Prompts per step."""
    max_length: int = Field(256, ge=8)
    """Tokens of prompt and response; of longer ones the prompt loses its beginning."""
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
    """Train, measure on held-out rankings (reward_report.json), shift so that demonstrations score 0, save."""
    sft, tokenizer = load_model(config.model)
    ensure_pad(tokenizer)
    ensure_chat(tokenizer)  # of a base model: its chat tokens are new and get trained here
    resize_for(sft, tokenizer)
    sft.eval()
    rows, people = rankings(config.data, config.held_out, run.bad_rows, joined=False)
    rows, held = join_annotators(rows), join_annotators(people)
    rows, held = rows[: config.rows], held[:: -(-len(held) // config.held_rows)]
    model = create_reward_model(sft, tokenizer, seed=config.seed, features=config.features)
    adapters = None
    if config.method == "lora":
        adapters = Adapters(model.trunk, ["reward"], config.lora, config.seed)
        adapters.use("reward")

    def encode(rows: Rows) -> Rows:
        return encode_rankings(rows, tokenizer, config.max_length, sft if config.features else None)

    encoded, held_encoded = encode(rows), encode(held)
    width = None  # answers behind one copy of their prompt, where the model takes that
    if adapters is None and takes_packs(model, tokenizer.pad_token_id):
        width = model.model.score.weight.shape[1]
    last = train(
        model,
        kwise,
        RankingLoader(encoded, config.batch_size, tokenizer.pad_token_id, config.seed, width),
        Optimizers(model, config.optimizer, head_lr={"features": config.feature_lr}),
        run,
        steps=config.steps,
        precision=config.precision,
        save_every=config.save_every,
        parallel=config.parallel,
    )
    model.eval()

    def scores(encoded: Rows) -> list[list[float]]:
        return score_rankings(model, encoded, tokenizer.pad_token_id)

    some = slice(0, len(held))  # as many training rows as held-out ones: the gap between the two is overfitting
    longer = prefers_longer(rows)
    report = full_report(held, scores(held_encoded), [truth_of(row) for row in held], longer, people)
    save_report(run.path, report)
    shown = scores(encode(_demonstrations(held)))
    model.reward_shift = sum(score for (score,) in shown) / len(shown)
    _save(model, adapters, run.path / "model", tokenizer)
    return {
        "loss": last["loss"],
        **report["summary"],
        "train_accuracy": pair_accuracy(rows[some], scores(encoded[some])),
        "length_rule": "longer" if longer else "shorter",
        "reward_shift": model.reward_shift,
        "train_prompts": len(rows),
        "held_prompts": len(held),
        **{key: sum(row[key] for row in (*encoded, *held_encoded)) for key in ("prompts_cut", "responses_cut")},
    }


def _demonstrations(rows: Rows) -> Rows:
    """The demonstrations whose mean score the shift moves to 0 (Stiennon et al. 2020); the embedded world knows them,
    elsewhere a row's "demonstration" or "completion", or its best-ranked response, stands in."""
    shown = []
    for row in rows:
        text = demonstration(row) or row["responses"][row["ranking"][0][0]]
        shown.append({"prompt": row["prompt"], "responses": [text], "ranking": [[0]]})
    return shown


def _save(model: RewardModel, adapters: Adapters | None, folder: Path, tokenizer: Any) -> None:
    if adapters is None:
        model.save(folder, tokenizer)
        return
    plain = RewardModel(unload(model.model, "reward"), model.features, model.reward_shift)
    plain.save(folder, tokenizer, {ADAPTER_FILE: adapters.state("reward")})
