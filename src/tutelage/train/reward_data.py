"""Rankings to tensors: responses of one prompt stay together, each goes through the model once (K forwards)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from tutelage.core.errors import DataError
from tutelage.core.runtime import generator
from tutelage.model.heads import logprob_features
from tutelage.text.chat import encode_prompt, turn_end_id


def read_rankings(path: str | Path) -> list[dict[str, Any]]:
    """Rows {"prompt","responses","ranking"} or {"prompt","chosen","rejected"}; a bad one raises DataError file:line."""
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: not JSON ({error}); expected one JSON object per line") from None
        if "chosen" in row:
            row = {"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"]], "ranking": [[0], [1]]}
        _check(row, where)
        rows.append(row)
    if not rows:
        raise DataError(f"{path}: no rankings; expected at least one row")
    return rows


def _check(row: Any, where: str) -> None:
    if not isinstance(row, dict) or not {"prompt", "responses", "ranking"} <= set(row):
        raise DataError(f'{where}: expected {{"prompt", "responses", "ranking"}} or {{"prompt", "chosen", "rejected"}}')
    k = len(row["responses"])
    if k < 2:
        raise DataError(f"{where}: {k} response; a ranking needs at least 2")
    if sorted(i for group in row["ranking"] for i in group) != list(range(k)):
        raise DataError(f"{where}: ranking {row['ranking']} must name each of 0..{k - 1} exactly once")


def encode_ranking(row: dict[str, Any], tokenizer: Any, max_length: int) -> dict[str, Any]:
    """Token ids of each response after its prompt, the responses' start, and their ranks (0 best; equal = tie)."""
    prompt = encode_prompt(
        tokenizer, row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": row["prompt"]}]
    )
    end = turn_end_id(tokenizer)
    ids = [
        (prompt + tokenizer(text, add_special_tokens=False)["input_ids"] + [end])[-max_length:]
        for text in row["responses"]
    ]
    ranks = [0] * len(ids)
    for rank, group in enumerate(row["ranking"]):
        for i in group:
            ranks[i] = rank
    return {"ids": ids, "start": len(prompt), "ranks": ranks}


def add_features(rows: list[dict[str, Any]], sft: Any, pad_id: int, batch: int = 32) -> None:
    """Give every encoded row its responses' log-prob features [K, 5] under the frozen SFT model, computed once."""
    order = sorted(range(len(rows)), key=lambda i: max(map(len, rows[i]["ids"])))  # like lengths, little padding
    for start in range(0, len(order), batch):
        part = [rows[i] for i in order[start : start + batch]]
        made = collate_rankings(part, pad_id)
        found = logprob_features(sft, made["input_ids"], made["attention_mask"], made["response_mask"])
        for row, features_KF in zip(part, found.view(len(part), -1, found.shape[1])):
            row["features"] = features_KF[: len(row["ids"])]


def collate_rankings(rows: list[dict[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
    """Pad to [P*K, T] and [P, K], features (if the rows have them) to [P*K, 5]; missing responses have mask 0 and one
    pad token."""
    K = max(len(r["ids"]) for r in rows)
    T = max(len(i) for r in rows for i in r["ids"])
    ids = torch.full((len(rows) * K, T), pad_id)
    attention = torch.zeros_like(ids)
    response = torch.zeros_like(ids)
    ranks = torch.full((len(rows), K), -1)
    for p, row in enumerate(rows):
        for k, tokens in enumerate(row["ids"]):
            ids[p * K + k, : len(tokens)] = torch.tensor(tokens)
            attention[p * K + k, : len(tokens)] = 1
            response[p * K + k, row["start"] : len(tokens)] = 1
            ranks[p, k] = row["ranks"][k]
        for k in range(len(row["ids"]), K):
            attention[p * K + k, 0] = 1
    batch = {
        "input_ids": ids,
        "attention_mask": attention,
        "response_mask": response,
        "ranks": ranks,
        "mask": ranks >= 0,
    }
    if "features" in rows[0]:
        batch["features"] = pad_sequence([row["features"] for row in rows], batch_first=True).flatten(0, 1)
    return batch


class RankingLoader:
    """Endless shuffled batches of prompts with all their responses; resumable."""

    def __init__(self, rows: list[dict[str, Any]], batch_size: int, pad_id: int, seed: int):
        self.rows, self.batch_size, self.pad_id, self.seed = rows, min(batch_size, len(rows)), pad_id, seed
        self.epoch, self.cursor = 0, 0

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return self

    def __next__(self) -> dict[str, torch.Tensor]:
        if self.cursor + self.batch_size > len(self.rows):
            self.epoch, self.cursor = self.epoch + 1, 0
        order = torch.randperm(len(self.rows), generator=generator(self.seed, "rankings", self.epoch)).tolist()
        rows = [self.rows[i] for i in order[self.cursor : self.cursor + self.batch_size]]
        self.cursor += self.batch_size
        return collate_rankings(rows, self.pad_id)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "cursor": self.cursor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.cursor = state["epoch"], state["cursor"]
