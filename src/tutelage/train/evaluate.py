"""Held-out measurements that several stages share."""

from __future__ import annotations

import math

import torch
from torch import nn

from tutelage.loss.lm import cross_entropy_sum
from tutelage.text.shards import TokenShards


@torch.no_grad()
def text_loss(model: nn.Module, shards: TokenShards, block: int, limit: int = 24_000) -> float:
    """Mean cross-entropy (nats per token) over at most `limit` held-out tokens, in blocks; NaN without a block."""
    training = model.training
    model.eval()
    total, count = 0.0, 0
    blocks = [shards.read(i, block) for i in range(0, min(limit, shards.tokens) - block, block)]
    for i in range(0, len(blocks), 64):
        ids = torch.stack([torch.as_tensor(b.astype("int64")) for b in blocks[i : i + 64]])
        s, n = cross_entropy_sum(model(input_ids=ids, use_cache=False).logits, ids)
        total, count = total + float(s), count + int(n)
    model.train(training)
    return total / count if count else math.nan
