"""Several responses behind one copy of their prompt: a row in which every response sees the prompt and itself.

The prompt is computed once instead of once a response, at the price of attention over a longer row. Scores and
gradients are those of the responses apart (a causal model's prompt cannot see what follows it).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tutelage.model.heads import RewardModel
from tutelage.text.loader import cut_by_tokens

Row = dict[str, Any]
Place = tuple[int, int]

ATTENTION_SHARE = 0.22
"""Cost of attention relative to the rest, per token of the row and unit of width. On two cores (4 layers, width 128,
eager, bf16, both passes) a token cost 19.8 us in rows of 22 tokens, 20.0 in rows of 54 and 23.8 in rows of 142."""
TOLERANCE = 2e-3


@dataclass(frozen=True)
class Pack:
    """Responses (row, number) of one prompt, in one row of `length` tokens."""

    places: tuple[Place, ...]
    length: int


def pack(rows: Sequence[Row], width: int) -> list[Pack]:
    """Every response of the encoded rows once, several to a pack where that is cheaper for a model of that width."""
    share = ATTENTION_SHARE / width

    def cost(tokens: int) -> float:
        return tokens * (1 + share * tokens)

    out: list[Pack] = []
    for p, row in enumerate(rows):
        order = sorted(range(len(row["ids"])), key=lambda k: len(row["ids"][k]))
        open_: list[int] = []
        length = 0
        for k in order:
            start, alone = row["starts"][k], len(row["ids"][k])
            more = length + alone - start
            same = bool(open_) and row["ids"][k][:start] == row["ids"][open_[0]][: row["starts"][open_[0]]]
            if same and cost(more) - cost(length) < cost(alone):
                open_.append(k)
                length = more
                continue
            if open_:
                out.append(Pack(tuple((p, i) for i in open_), length))
            open_, length = [k], alone
        out.append(Pack(tuple((p, i) for i in open_), length))
    return out


def packed_parts(
    rows: Sequence[Row], pad_id: int, width: int, tokens: int
) -> Iterator[tuple[list[Place], dict[str, Tensor]]]:
    """As `reward_data.parts`, with packs: yields (the places in order, {"input_ids", "position_ids" [B, T],
    "attention_mask" bool [B, 1, T, T], "ends" [N, 2]: (row, token) at which each response ends, and "features"})."""
    packs = pack(rows, width)
    lengths = [p.length for p in packs]
    for numbers in cut_by_tokens(sorted(range(len(packs)), key=lengths.__getitem__), lengths, tokens):
        here = [packs[i] for i in numbers]
        places = [place for p in here for place in p.places]
        part = _tensors(rows, here, pad_id)
        if "features" in rows[0]:
            part["features"] = torch.stack([rows[p]["features"][k] for p, k in places])
        yield places, part


def _tensors(rows: Sequence[Row], packs: Sequence[Pack], pad_id: int) -> dict[str, Tensor]:
    size = (len(packs), max(p.length for p in packs))
    ids, positions, segment = torch.full(size, pad_id), torch.zeros(size, dtype=torch.long), torch.full(size, -1)
    ends: list[tuple[int, int]] = []
    for b, one in enumerate(packs):
        p, first = one.places[0]
        start = rows[p]["starts"][first]
        ids[b, :start] = torch.tensor(rows[p]["ids"][first][:start])
        positions[b, :start] = torch.arange(start)
        segment[b, :start] = 0
        at = start
        for number, (_, k) in enumerate(one.places, 1):
            said = rows[p]["ids"][k][start:]
            ids[b, at : at + len(said)] = torch.tensor(said)
            positions[b, at : at + len(said)] = torch.arange(start, start + len(said))
            segment[b, at : at + len(said)] = number
            at += len(said)
            ends.append((b, at - 1))
    before = torch.ones(size[1], size[1], dtype=torch.bool).tril()
    mine = segment[:, :, None] == segment[:, None, :]
    seen = before & (segment[:, None, :] >= 0) & (mine | (segment[:, None, :] == 0))
    # padding sees itself, so that no row of the softmax is empty
    seen |= torch.eye(size[1], dtype=torch.bool)
    return {
        "input_ids": ids, "position_ids": positions, "attention_mask": seen[:, None], "ends": torch.tensor(ends),
    }  # fmt: skip


@torch.no_grad()
def takes_packs(model: RewardModel, pad_id: int) -> bool:
    """Whether the model scores packed responses as it scores them apart.

    Families differ in what they make of a mask [B, 1, T, T] (some ignore it, recurrent ones have none, windows are
    lost), so it is tried, in fp32, on two prompts.
    """
    config = model.config.get_text_config()
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()) or getattr(config, "sliding_window", None):
        return False
    vocab = model.model.get_input_embeddings().num_embeddings
    size = min(24, vocab)
    generator = torch.Generator().manual_seed(0)
    rows: list[Row] = []
    for prompt in (3, 9):
        head = torch.randint(size, (prompt,), generator=generator).tolist()
        said = [torch.randint(size, (n,), generator=generator).tolist() for n in (2, 4, 5)]
        rows.append({"ids": [head + s for s in said], "starts": [prompt] * 3})
    training = model.training
    features, model.features = model.features, None
    model.eval()
    try:
        apart = [[model(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long)).item() for ids in r["ids"]]
                 for r in rows]  # fmt: skip
        together = [[0.0] * 3 for _ in rows]
        for places, part in packed_parts(rows, pad_id, 1 << 20, 1 << 20):
            for (p, k), score in zip(places, model(**part).tolist()):
                together[p][k] = score
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return False
    finally:
        model.features = features
        model.train(training)
    return all(abs(a - b) <= TOLERANCE * (1 + abs(a)) for x, y in zip(apart, together) for a, b in zip(x, y))
