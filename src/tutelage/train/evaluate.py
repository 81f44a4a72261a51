"""Held-out measurements that several stages share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tutelage.loss.lm import cross_entropy_sum
from tutelage.text.shards import TokenShards
from tutelage.train.loop import Batch, Objective


@torch.no_grad()
def text_loss(model: nn.Module, shards: TokenShards, block: int, limit: int = 24_000) -> float:
    """Mean cross-entropy (nats per token) over at most `limit` held-out tokens, in blocks; NaN without a block."""
    training = model.training
    model.eval()
    total, count = 0.0, 0
    blocks = [shards.read(i, block) for i in range(0, min(limit, shards.tokens) - block, block)]
    for i in range(0, len(blocks), 64):
        ids = torch.stack([torch.as_tensor(b.astype("int64")) for b in blocks[i : i + 64]])
        # virtual tokens of a learned prompt stand in front
        s, n = cross_entropy_sum(model(input_ids=ids, use_cache=False).logits[:, -block:], ids)
        total, count = total + float(s), count + int(n)
    model.train(training)
    return total / count if count else math.nan


@torch.no_grad()
def objective_loss(model: nn.Module, objective: Objective, batches: Iterable[Batch]) -> dict[str, float]:
    """"val_loss", the mean over all units of the batches, and the objective's own metrics as "val_NAME"."""
    training = model.training
    model.eval()
    count, sums = 0, {"loss": 0.0}
    for batch in batches:
        total, metrics = objective(model, batch)
        units = metrics.pop("count")
        metrics.pop("tokens", None)
        count += units
        sums["loss"] += float(total)
        for key, value in metrics.items():
            sums[key] = sums.get(key, 0.0) + float(value) * units
    model.train(training)
    return {f"val_{key}": value / count if count else math.nan for key, value in sums.items()}


def _windows(stream_N: Tensor, block: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(ids, labels) of half-overlapping windows: every token but the first is a label in exactly one of them."""
    step = block // 2
    for start in range(0, len(stream_N), step):
        ids = stream_N[start : start + block]
        labels = ids.clone()
        labels[: block - step if start else 1] = -100  # what the window before has predicted
        yield ids, labels
        if start + block >= len(stream_N):
            return


@torch.no_grad()
def whole_text_nats(model: nn.Module, shards: TokenShards, block: int, batch: int = 32) -> float:
    """Nats that the model spends on every token of the shards, document ends included, each token exactly once.

    The text is read as one stream that begins behind a document end, in windows of `block` tokens; a token has at
    least block/2 tokens before it (fewer at the very start). ValueError for a block under 2.
    """
    if block < 2:
        raise ValueError(f"block {block}, expected at least 2")
    training = model.training
    model.eval()
    end = torch.from_numpy(shards.document(0)[-1:])
    windows = _windows(torch.cat([end, torch.from_numpy(shards.read(0, shards.tokens))]), block)
    total, count = 0.0, 0
    while group := list(islice(windows, batch)):
        ids = pad_sequence([ids for ids, _ in group], batch_first=True)
        labels = pad_sequence([labels for _, labels in group], batch_first=True, padding_value=-100)
        s, n = cross_entropy_sum(model(input_ids=ids, use_cache=False).logits, labels)
        total, count = total + float(s), count + int(n)
    model.train(training)
    assert count == shards.tokens, (count, shards.tokens)
    return total


def bits_per_byte(nats: float, size: int) -> float:
    """Bits per byte of a text of `size` UTF-8 bytes on which a model of any tokenizer spends `nats`."""
    return nats / math.log(2) / size
