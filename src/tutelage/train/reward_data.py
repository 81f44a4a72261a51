"""Rankings to tensors: all responses of a prompt stay in one batch element, each goes through the model once.

Responses of like length go through the model together, whatever prompt they answer: the scores are then put back to
their places, and the loss sees every pair of a prompt. On real answers (20 to 2,000 characters beside one another)
padding them all to the longest would cost more than the answers themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tutelage.core.distributed import rank, world_size
from tutelage.core.errors import ConfigError
from tutelage.core.runtime import generator
from tutelage.model.heads import RewardModel, logprob_features
from tutelage.text.chat import as_messages, encode_prompt, turn_end_id
from tutelage.text.loader import collate, cut_by_tokens
from tutelage.train.packs import packed_parts

Row = dict[str, Any]
Part = dict[str, Tensor]

PART_TOKENS = 2048
"""Tokens of one forward, padding counted: on two cores, 13 real answers a prompt, 512 tokens each at most, took 45 s in
one block, 18 s in parts of 16,384 tokens, 10.3 s in parts of 2,048 and 11.3 s in parts of 1,024."""


def encode_ranking(row: Row, tokenizer: Any, max_length: int) -> Row:
    """Token ids of each response after its prompt, where it starts in them, and its rank (0 is best; equal = tie).

    What is longer than `max_length` loses the beginning of its prompt, of which the last token (the assistant's turn
    begins) always stays; a response that is itself too long loses its end, and with it the end token.
    "prompts_cut" and "responses_cut" count the responses so shortened. Soft labels become "p_better" [K, K], NaN where
    there is none.
    """
    prompt = encode_prompt(tokenizer, as_messages({"prompt": row["prompt"]}))
    end = turn_end_id(tokenizer)
    said = tokenizer(list(row["responses"]), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    out: Row = {"ids": [], "starts": [], "ranks": [0] * len(said), "prompts_cut": 0, "responses_cut": 0}
    for response in said:
        whole = [*response, end]
        kept = whole[: max_length - 1]
        before = prompt[-min(len(prompt), max_length - len(kept)) :]
        out["ids"].append(before + kept)
        out["starts"].append(len(before))
        out["prompts_cut"] += len(before) < len(prompt)
        out["responses_cut"] += len(kept) < len(whole)
    for place, group in enumerate(row["ranking"]):
        for i in group:
            out["ranks"][i] = place
    if row.get("p_better") is not None:
        out["p_better"] = torch.tensor([[torch.nan if p is None else p for p in line] for line in row["p_better"]])
    return out


def encode_rankings(rows: Sequence[Row], tokenizer: Any, max_length: int, sft: Any = None) -> list[Row]:
    """Every row by `encode_ranking`; given the frozen SFT model, with its log-prob features."""
    encoded = [encode_ranking(row, tokenizer, max_length) for row in rows]
    if sft is not None:
        add_features(encoded, sft, tokenizer.pad_token_id)
    return encoded


def parts(rows: Sequence[Row], pad_id: int, tokens: int = PART_TOKENS) -> Iterator[tuple[list[tuple[int, int]], Part]]:
    """Every response of the encoded rows once, shortest first, in right-padded parts of at most `tokens` tokens.

    Yields (the (row, response) numbers of the part, {"input_ids", "attention_mask", "response_mask": [B, T]} and
    "features" [B, 5] if the rows have them).
    """
    places = [(p, k) for p, row in enumerate(rows) for k in range(len(row["ids"]))]
    lengths = [len(rows[p]["ids"][k]) for p, k in places]
    order = sorted(range(len(places)), key=lengths.__getitem__)
    for numbers in cut_by_tokens(order, lengths, tokens):
        here = [places[i] for i in numbers]
        part = collate([{"input_ids": rows[p]["ids"][k]} for p, k in here], pad_id)
        starts = torch.tensor([rows[p]["starts"][k] for p, k in here])
        said = torch.arange(part["input_ids"].shape[1]) >= starts[:, None]
        part["response_mask"] = part["attention_mask"] * said
        if "features" in rows[0]:
            part["features"] = torch.stack([rows[p]["features"][k] for p, k in here])
        yield here, part


def add_features(rows: list[Row], sft: Any, pad_id: int) -> None:
    """Give every encoded row its responses' log-prob features [K, 5] under the frozen SFT model, computed once."""
    found = [torch.zeros(0)] * len(rows)
    for here, part in parts(rows, pad_id):
        made = logprob_features(sft, part["input_ids"], part["attention_mask"], part["response_mask"])
        for (p, k), features in zip(here, made):
            if not len(found[p]):
                found[p] = made.new_zeros(len(rows[p]["ids"]), made.shape[1])
            found[p][k] = features
    for row, features in zip(rows, found):
        row["features"] = features


def collate_rankings(
    rows: Sequence[Row], pad_id: int, tokens: int = PART_TOKENS, width: int | None = None
) -> dict[str, Any]:
    """One batch of P prompts: "parts" as `parts` yields them (or, given a model's `width`, as `packed_parts` does),
    "places" [N] of their responses in the flat [P*K] table, "ranks" and "mask" [P, K] (-1 and False where a prompt has
    fewer responses), "p_better" [P, K, K] if a row has it, and if the rows have a "ref" (log-probs under the reference)
    "ref" and "lengths" (tokens of the responses) [P, K].
    """
    K = max(len(row["ids"]) for row in rows)
    made = list(parts(rows, pad_id, tokens) if width is None else packed_parts(rows, pad_id, width, tokens))
    ranks = torch.full((len(rows), K), -1)
    for line, row in zip(ranks, rows):
        line[: len(row["ranks"])] = torch.tensor(row["ranks"])
    batch: dict[str, Any] = {
        "parts": [part for _, part in made],
        "places": torch.tensor([p * K + k for here, _ in made for p, k in here]),
        "ranks": ranks,
        "mask": ranks >= 0,
    }
    if "ref" in rows[0]:
        batch["ref"], batch["lengths"] = torch.zeros(len(rows), K), torch.zeros(len(rows), K)
        for p, row in enumerate(rows):
            batch["ref"][p, : len(row["ids"])] = row["ref"]
            said = [len(ids) - start for ids, start in zip(row["ids"], row["starts"])]
            batch["lengths"][p, : len(said)] = torch.tensor(said, dtype=torch.float32)
    if any("p_better" in row for row in rows):
        batch["p_better"] = torch.full((len(rows), K, K), torch.nan)
        for table, line, row in zip(batch["p_better"], ranks, rows):
            k = len(row["ids"])
            table[:k, :k] = row["p_better"] if "p_better" in row else _shares(line[:k])
    return batch


def _shares(ranks_K: Tensor) -> Tensor:
    """[K, K]: 1 where the first is ranked better, 0 where the second is, NaN for a tie."""
    better = (ranks_K[:, None] < ranks_K[None, :]).float()
    return better.masked_fill(ranks_K[:, None] == ranks_K[None, :], torch.nan)


class RankingLoader:
    """Endless shuffled batches of prompts with all their responses; resumable. `width`: see collate_rankings.

    Of each batch of `batch_size` prompts this rank gets every world_size-th, whole. ConfigError for fewer than ranks.
    """

    def __init__(self, rows: list[Row], batch_size: int, pad_id: int, seed: int, width: int | None = None):
        self.rows, self.batch_size, self.pad_id, self.seed = rows, min(batch_size, len(rows)), pad_id, seed
        self.width = width
        self.epoch, self.cursor = 0, 0
        self.handed: list[int] = []  # the last batch's rows
        if self.batch_size < world_size():
            raise ConfigError(f"batch_size={self.batch_size}: fewer prompts than the {world_size()} ranks; raise it")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        if self.cursor + self.batch_size > len(self.rows):
            self.epoch, self.cursor = self.epoch + 1, 0
        order = torch.randperm(len(self.rows), generator=generator(self.seed, "rankings", self.epoch)).tolist()
        self.handed = order[self.cursor : self.cursor + self.batch_size]
        self.cursor += self.batch_size
        return self.collate([self.rows[i] for i in self.handed[rank() :: world_size()]])

    def collate(self, rows: list[Row]) -> dict[str, Any]:
        """The batch of some rows."""
        return collate_rankings(rows, self.pad_id, width=self.width)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "cursor": self.cursor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.cursor = state["epoch"], state["cursor"]


@torch.no_grad()
def score_rankings(model: RewardModel, rows: Sequence[Row], pad_id: int) -> list[list[float]]:
    """The scores of all responses of each encoded row."""
    out = [[0.0] * len(row["ids"]) for row in rows]
    for here, part in parts(rows, pad_id):
        scores = model(part["input_ids"], part["attention_mask"], features=part.get("features")).tolist()
        for (p, k), score in zip(here, scores):
            out[p][k] = score
    return out
