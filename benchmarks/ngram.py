"""A strong counting baseline: interpolated modified Kneser-Ney n-grams over any ids (bytes or tokens).

Chen and Goodman 1999, section 3: three discounts an order, estimated from the counts of counts; lower orders count in
how many different contexts a gram was seen; the unigram is mixed with the uniform distribution, so nothing has
probability 0. An n-gram is packed into one int64, so all tables are sorted arrays and all steps are whole-array ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass
class _Order:
    keys: np.ndarray  # packed n-grams, sorted
    counts: np.ndarray  # their counts (highest order) or continuation counts
    contexts: np.ndarray  # packed (n-1)-grams, sorted
    totals: np.ndarray  # summed counts of each context
    left: np.ndarray  # probability mass that the discounts free in each context
    discounts: np.ndarray  # [4]: for counts 0, 1, 2, 3 and more


def _find(table: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(position in the sorted table, whether it is there) of every wanted key."""
    at = np.searchsorted(table, wanted)
    at[at == len(table)] = 0
    return at, table[at] == wanted


def _discounts(counts: np.ndarray) -> np.ndarray:
    n1, n2, n3, n4 = (max(1, int((counts == k).sum())) for k in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2)
    found = [0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    return np.clip(found, [0, 0.01, 0.01, 0.01], [0, 0.99, 1.99, 2.99])


class KneserNey:
    """Interpolated modified Kneser-Ney of the given order over ids 0..vocab-1."""

    def __init__(self, ids: np.ndarray, order: int, vocab: int) -> None:
        self.order, self.vocab = order, vocab
        self.bits = max(1, math.ceil(math.log2(vocab)))
        if self.bits * order > 63:
            raise ValueError(f"{order} ids of {self.bits} bits do not fit into 63 bits")
        keys, counts = np.unique(self._pack(ids, order), return_counts=True)
        orders = []
        for n in range(order, 0, -1):
            orders.append(self._table(keys, counts))
            keys, counts = np.unique(keys & ((1 << self.bits * (n - 1)) - 1), return_counts=True)
        self.orders = orders[::-1]

    def _pack(self, ids: np.ndarray, n: int) -> np.ndarray:
        """int64 [N-n+1]: every run of n ids as one number, the first id in the highest bits."""
        ids = ids.astype(np.int64)
        size = len(ids) - n + 1
        packed = np.zeros(size, dtype=np.int64)
        for k in range(n):
            packed = (packed << self.bits) | ids[k : k + size]
        return packed

    def _table(self, keys: np.ndarray, counts: np.ndarray) -> _Order:
        discounts = _discounts(counts)
        contexts, starts = np.unique(keys >> self.bits, return_index=True)
        totals = np.add.reduceat(counts, starts)
        left = np.add.reduceat(discounts[np.minimum(counts, 3)], starts) / totals
        return _Order(keys, counts, contexts, totals, left, discounts)

    def probabilities(self, ids: np.ndarray) -> np.ndarray:
        """P(ids[i] | the order-1 ids before it) for i >= order-1."""
        full = self._pack(ids, self.order)
        p = np.full(len(full), 1.0 / self.vocab)
        for n, table in enumerate(self.orders, 1):
            keys = full & ((1 << self.bits * n) - 1)
            at, known = _find(table.contexts, keys >> self.bits)
            gram, seen = _find(table.keys, keys)
            counts = np.where(seen, table.counts[gram], 0)
            own = (counts - table.discounts[np.minimum(counts, 3)]) / table.totals[at]
            p = np.where(known, np.where(seen, own, 0.0) + table.left[at] * p, p)
        return p

    def bits_of(self, ids: np.ndarray, before: np.ndarray) -> float:
        """Bits spent on all of `ids`; the last ids of `before` are the context of the first."""
        stream = np.concatenate([before[len(before) - self.order + 1 :], ids])
        return float(-np.log2(self.probabilities(stream)).sum())
