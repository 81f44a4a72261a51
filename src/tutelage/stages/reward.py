"""Reward model from rankings (InstructGPT sec. 3.5): K forwards per prompt, all pairs in one batch element."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tutelage.core.config import StageConfig
from tutelage.core.rundir import RunDir
from tutelage.core.stats import calibration_error, correlation, kendall_tau, wilson
from tutelage.model.heads import create_reward_model, logprob_features
from tutelage.model.hub import load_model
from tutelage.schoolroom.judge import gold
from tutelage.schoolroom.rows import item_from_row
from tutelage.train.loop import train
from tutelage.train.objectives import kwise
from tutelage.train.optim import OptimConfig, Optimizers
from tutelage.train.reward_data import RankingLoader, collate_rankings, encode_ranking, read_rankings


class RewardConfig(StageConfig):
    model: str
    """The SFT model."""
    data: str
    """A rankings file, or the run directory of `rank`."""
    features: bool = True
    """Log-prob features of the frozen SFT model beside the hidden state."""
    steps: int = 150
    batch_size: int = 32
    """Prompts per step."""
    max_length: int = 256
    precision: str = "auto"
    save_every: int = 100
    feature_lr: float = 8.0
    """Learning rate of the feature head as a multiple of the rest."""
    optimizer: OptimConfig = OptimConfig(name="adamw", lr=1.5e-3, eps=1e-5)


def run(config: RewardConfig, run: RunDir) -> dict[str, Any]:
    sft, tokenizer = load_model(config.model)
    sft.eval()
    folder = Path(config.data)
    train_file, held_file = (folder / "rankings.jsonl", folder / "heldout.jsonl") if folder.is_dir() else (folder, None)
    rows = read_rankings(train_file)
    held = read_rankings(held_file) if held_file else rows[: max(1, len(rows) // 10)]
    rows = rows if held_file else rows[len(held) :] or rows
    model = create_reward_model(sft, tokenizer, seed=config.seed, features=config.features)

    def prepare(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not config.features:
            return batch
        features = logprob_features(sft, batch["input_ids"], batch["attention_mask"], batch["response_mask"])
        return {**batch, "features": features}

    encoded = [encode_ranking(row, tokenizer, config.max_length) for row in rows]
    loader = RankingLoader(encoded, config.batch_size, tokenizer.pad_token_id, config.seed, prepare)
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
    with torch.inference_mode():
        scored = [_score(model, row, tokenizer, config.max_length, prepare) for row in held]
        report = _report(held, scored)
        model.reward_shift = float(_demonstration_mean(model, held, tokenizer, config, prepare))
    model.save(run.path / "model", tokenizer)
    return {"loss": last["loss"], **report, "reward_shift": model.reward_shift, "train_prompts": len(rows)}


def _score(model: Any, row: dict[str, Any], tokenizer: Any, max_length: int, prepare: Any) -> list[float]:
    batch = prepare(collate_rankings([encode_ranking(row, tokenizer, max_length)], tokenizer.pad_token_id))
    return model(batch["input_ids"], batch["attention_mask"], features=batch.get("features")).float().tolist()


def _demonstration_mean(
    model: Any, rows: list[dict[str, Any]], tokenizer: Any, config: RewardConfig, prepare: Any
) -> float:
    """Mean score of demonstrations, which the shift moves to 0; best-ranked responses stand in where none is given."""
    total = [
        max(
            _score(
                model,
                {**row, "responses": [item_from_row(row).good] * 2, "ranking": [[0, 1]]},
                tokenizer,
                config.max_length,
                prepare,
            )
        )
        if "item" in row
        else max(_score(model, row, tokenizer, config.max_length, prepare))
        for row in rows
    ]
    return sum(total) / len(total)


def _report(rows: list[dict[str, Any]], scored: list[list[float]]) -> dict[str, Any]:
    """Held-out accuracy with interval, Kendall's tau, calibration, length bias, right above wrong by the gold judge."""
    right = pairs = length_right = 0
    taus, margins, wins, scores, lengths = [], [], [], [], []
    gate_right = gate_pairs = 0
    for row, score in zip(rows, scored):
        rank = {i: r for r, group in enumerate(row["ranking"]) for i in group}
        texts = row["responses"]
        correct = [gold(item_from_row(row), t).correct for t in texts] if "item" in row else None
        taus.append(kendall_tau(score, [-rank[i] for i in range(len(texts))]))
        scores += score
        lengths += [len(t) for t in texts]
        for i in range(len(texts)):
            for j in range(i):
                a, b = (i, j) if rank[i] < rank[j] else (j, i)
                if rank[i] != rank[j]:
                    pairs += 1
                    right += score[a] > score[b]
                    length_right += len(texts[a]) > len(texts[b])
                    margins.append(1 / (1 + pow(2.718281828, -abs(score[a] - score[b]))))
                    wins.append(float(score[a] > score[b]))
                if correct and (correct[i] >= 0.5) != (correct[j] >= 0.5):
                    gate_pairs += 1
                    gate_right += (score[i] > score[j]) == (correct[i] > correct[j])
    low, high = wilson(right, pairs)
    out = {
        "accuracy": right / max(1, pairs),
        "accuracy_low": low,
        "accuracy_high": high,
        "pairs": pairs,
        "kendall_tau": sum(taus) / max(1, len(taus)),
        "calibration_error": calibration_error(margins, wins),
        "length_correlation": correlation(scores, lengths),
        "length_only_accuracy": length_right / max(1, pairs),
    }
    if gate_pairs:
        out |= {"right_over_wrong": gate_right / gate_pairs, "right_over_wrong_pairs": gate_pairs}
    return out
