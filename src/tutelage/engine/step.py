"""The plan of one decoding step of a cohort that shares nothing: the same attention with less Python around it.

A step of a small model takes a millisecond or two, and every layer goes through here once a step: views are taken once,
keys of a lone row are written by a plain copy, and no log-sum-exp is carried as there is nothing to merge.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tutelage.engine.pool import Pool
from tutelage.model.kernels import How, attention_with_lse
from tutelage.model.plans import Block, Plan


class Step(Plan):
    """N rows of `pool`, their new token at `columns` (int64 [N]); `own` is their block for whatever is not plain."""

    def __init__(self, own: Block, keeper: Any, pool: Pool, columns: Tensor) -> None:
        super().__init__([own], (), [keeper])
        self.pool, self.longest = pool, int(columns.max()) + 1
        self.columns, self.rows = columns, torch.arange(len(columns), device=columns.device)
        self.one = int(columns[0]) if len(columns) == 1 else -1

    def run(self, layer: int, query_HND: Tensor, key: Tensor, value: Tensor, how: How, sinks: Any) -> Tensor:
        """See Plan."""
        if sinks is not None or layer not in self.pool.keys:
            return super().run(layer, query_HND, key, value, how, sinks)
        keys, values = self.pool.keys[layer], self.pool.values[layer]
        if self.one >= 0:
            keys[0, :, self.one] = key[:, 0]
            values[0, :, self.one] = value[:, 0]
        else:
            keys[self.rows, :, self.columns] = key.transpose(0, 1)
            values[self.rows, :, self.columns] = value.transpose(0, 1)
        query = query_HND.transpose(0, 1)[:, :, None]
        bias, blind, causal = self.own[0]._masks(how.window, query)
        count = len(self.columns)
        part_k, part_v = keys[:count, :, : self.longest], values[:count, :, : self.longest]
        assert blind is None  # a row sees its own token at least
        out, _ = attention_with_lse(query, part_k, part_v, bias, causal, how.scale, how.softcap)
        return out[:, :, 0].to(query.dtype)
