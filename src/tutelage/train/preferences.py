"""Preferences for DPO, IPO and KTO: log-probs of whole answers, those of the reference computed once, loaders.

A ranking of K answers goes through the model as K rows (train/reward_data.py) and gives all its pairs, as it does for a
reward model: the policy's beta * log ratio takes the place of the reward model's score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tutelage.core.atomic import write_folder
from tutelage.core.runtime import autocast, generator
from tutelage.loss.lm import token_logprobs
from tutelage.loss.preference import kto_loss, kto_reference, kwise_loss, logistic, squared
from tutelage.train.reward_data import RankingLoader, Row, collate_rankings, encode_ranking, parts

TABLE = "reference"
"""Folder of a run directory with the reference's log-probs, so that a resumed run need not compute them again."""


def answer_logprobs(model: nn.Module, part: Mapping[str, Tensor]) -> Tensor:
    """Summed log-prob [B] of each row's response tokens, its end token included. `part`: see reward_data.parts."""
    ids = part["input_ids"]
    logits = model(input_ids=ids, attention_mask=part["attention_mask"], use_cache=False).logits
    return (token_logprobs(logits, ids) * part["response_mask"][:, 1:]).sum(1)


def table_of(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Log-probs [P, K] of a batch of rankings, 0 where a prompt has fewer responses; with gradient."""
    flat = torch.cat([answer_logprobs(model, part) for part in batch["parts"]])
    return flat.new_zeros(batch["ranks"].numel()).index_put((batch["places"],), flat).view_as(batch["ranks"])


@torch.no_grad()
def add_reference(rows: Sequence[Row], model: nn.Module, pad_id: int, precision: str) -> None:
    """Give every encoded row its responses' log-probs under the model as "ref" [K]: before the first step the policy is
    the reference, so that no second model is kept."""
    for row in rows:
        row["ref"] = torch.zeros(len(row["ids"]))
    training = model.training
    model.eval()
    for here, part in parts(rows, pad_id):
        with autocast(precision):
            found = answer_logprobs(model, part)
        for (p, k), value in zip(here, found):
            rows[p]["ref"][k] = value
    model.train(training)


def remembered_reference(rows: Sequence[Row], model: nn.Module, pad_id: int, precision: str, run: Path) -> None:
    """As `add_reference`, or from the run's own table where an earlier process has written it."""
    file = run / TABLE / "logprobs.safetensors"
    if file.is_file():
        flat = load_file(str(file))["ref"]
        for row, ref in zip(rows, flat.split([len(row["ids"]) for row in rows])):
            row["ref"] = ref
        return
    add_reference(rows, model, pad_id, precision)
    table = {"ref": torch.cat([row["ref"] for row in rows])}
    write_folder(file.parent, lambda aside: save_file(table, str(aside / file.name)))


class Preference:
    """DPO or IPO as an objective of the training loop, on every pair of each prompt's ranking (see kwise_loss).

    `average`: log ratios per token (TRL's IPO) instead of summed over the answer (the papers).
    """

    def __init__(self, loss: str, beta: float, label_smoothing: float = 0.0, average: bool = False) -> None:
        self.loss, self.beta, self.label_smoothing, self.average = loss, beta, label_smoothing, average

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        ratio = table_of(model, batch) - batch["ref"]
        if self.average:
            ratio = ratio / batch["lengths"].clamp(min=1)
        scores, pair = (self.beta * ratio, logistic) if self.loss == "dpo" else (ratio, squared(self.beta))
        loss, found = kwise_loss(
            scores, batch["ranks"], batch["mask"], label_smoothing=self.label_smoothing,
            p_better=batch.get("p_better"), pair=pair,
        )  # fmt: skip
        ranked = int(found["prompts"])  # prompts whose responses are all tied carry no pair and no weight
        rewards = self.beta * ratio.detach()
        best, worst = batch["ranks"] == 0, batch["ranks"] == batch["ranks"].amax(1, keepdim=True)
        return loss * ranked, {
            "accuracy": float(found["accuracy"]),
            # both may fall together, the better answer only more slowly: the likelihood of neither is held up
            "reward_best": float((rewards * best).sum() / best.sum().clamp(min=1)),
            "reward_worst": float((rewards * worst).sum() / worst.sum().clamp(min=1)),
            "count": ranked,
            "tokens": sum(part["input_ids"].numel() for part in batch["parts"]),
        }


class Thumbs:
    """KTO as an objective: answers with a label, and beside them answers to other prompts for the reference point."""

    def __init__(self, beta: float, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> None:
        self.beta, self.weights = beta, (desirable_weight, undesirable_weight)

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        other = batch["other"]
        with torch.no_grad():
            kl = kto_reference(table_of(model, other)[:, 0], other["ref"][:, 0])
        policy, labels = table_of(model, batch)[:, 0], batch["labels"]
        loss, found = kto_loss(policy, batch["ref"][:, 0], labels, kl, self.beta, *self.weights)
        both = (*batch["parts"], *other["parts"])
        return loss * len(labels), {
            **{name: float(value) for name, value in found.items()},
            "kto_kl": float(kl),
            "count": len(labels),
            "tokens": sum(part["input_ids"].numel() for part in both),
        }


def encode_labels(
    rows: Sequence[Row], tokenizer: Any, max_length: int, seed: int, pool: Sequence[Row] | None = None
) -> list[Row]:
    """KTO's rows {"prompt", "completion", "label"} as encoded rankings of one response, each with "label" and, as
    "other", its prompt before the answer to another prompt.

    The paper takes the next answer of the batch; here one is drawn from `pool` (the rows themselves by default) once,
    so that the reference's log-probs of these too are computed once.
    """
    pool = rows if pool is None else pool
    order = torch.randperm(len(pool), generator=generator(seed, "other answers")).tolist()
    place = {i: at for at, i in enumerate(order)}
    out: list[Row] = []
    for i, row in enumerate(rows):
        after = (pool[order[(place[i % len(pool)] + step) % len(pool)]] for step in range(1, len(pool) + 1))
        another = next((r for r in after if r["prompt"] != row["prompt"]), row)
        own, other = (
            encode_ranking({"prompt": row["prompt"], "responses": [text], "ranking": [[0]]}, tokenizer, max_length)
            for text in (row["completion"], another["completion"])
        )
        out.append({**own, "label": bool(row["label"]), "other": other})
    return out


class LabelLoader(RankingLoader):
    """Endless shuffled batches of `encode_labels`' rows; resumable."""

    def collate(self, rows: list[Row]) -> dict[str, Any]:
        return collate_labels(rows, self.pad_id)


def collate_labels(rows: Sequence[Row], pad_id: int) -> dict[str, Any]:
    """`collate_rankings` of the rows' own answers, with "labels" [P] and, as "other", that of the other ones."""
    labels = torch.tensor([row["label"] for row in rows])
    other = collate_rankings([row["other"] for row in rows], pad_id)
    return {**collate_rankings(rows, pad_id), "labels": labels, "other": other}
