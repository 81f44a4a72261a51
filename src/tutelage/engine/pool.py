"""Keys and values of the rows that are being decoded, in buffers written in place.

A pool holds rows of one capacity side by side, the live ones first, so that attention reads a view and nothing is
gathered or concatenated. Unused places are zero, not arbitrary: a masked key that is NaN would still spoil a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor


class Pool:
    """Rows of at most `capacity` tokens. Row r's token t is keys[layer][r, :, t]."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rows = 0
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    @property
    def tokens(self) -> int:
        """Tokens there is room for: what the pool takes of the budget."""
        return self.rows * self.capacity

    def reserve(self, rows: int, used: Tensor, spare: int) -> None:
        """Make room for `rows`, and twice as many as before where `spare` further tokens allow it; `used` [n] are the
        tokens of the rows that are there now, which are kept."""
        if rows > self.rows:
            self._resize(max(rows, min(2 * self.rows, rows + spare // self.capacity)), used)

    def trim(self, rows: int, used: Tensor) -> None:
        """Give memory back where no more than a quarter of the rows is in use."""
        if 0 < rows <= self.rows // 4:
            self._resize(2 * rows, used)

    def _resize(self, rows: int, used: Tensor) -> None:
        live, filled = len(used), int(used.max()) if len(used) else 0
        self.rows = rows
        for table in (self.keys, self.values):
            for layer, old in table.items():
                new = old.new_zeros(rows, *old.shape[1:])
                new[:live, :, :filled] = old[:live, :, :filled]
                table[layer] = new

    def write(self, layer: int, rows: Tensor, columns: Tensor, key_HMD: Tensor, value_HMD: Tensor) -> None:
        """Put the M tokens key_HMD, value_HMD at (rows, columns), int64 [M] each."""
        if layer not in self.keys:
            for table, x in ((self.keys, key_HMD), (self.values, value_HMD)):
                table[layer] = x.new_zeros(self.rows, x.shape[0], self.capacity, x.shape[2])
        self.keys[layer][rows, :, columns] = key_HMD.transpose(0, 1)
        self.values[layer][rows, :, columns] = value_HMD.transpose(0, 1)

    def fill(self, row: int, start: int, length: int, layers: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        """Put keys and values [H, length, D] of every layer behind a row's first `start` tokens."""
        for layer, (key, value) in layers.items():
            rows = torch.full((length,), row, dtype=torch.int64, device=key.device)
            self.write(layer, rows, torch.arange(start, start + length, device=key.device), key, value)

    def move(self, sources: list[int], targets: list[int], filled: int) -> None:
        """Copy rows (their first `filled` tokens) over others."""
        a, b = torch.tensor(sources), torch.tensor(targets)
        for table in (self.keys, self.values):
            for buffer in table.values():
                buffer[b.to(buffer.device), :, :filled] = buffer[a.to(buffer.device), :, :filled]


class PoolKeys:
    """The first `rows` rows of a pool, `length` tokens of each, as keys of an attention block."""

    def __init__(self, pool: Pool, rows: int, length: int) -> None:
        self.pool, self.rows, self.length = pool, rows, length

    def get(self, layer: int, key_HND: Tensor, value_HND: Tensor) -> tuple[Tensor, Tensor]:
        """See model.attention.Keys."""
        view = (slice(self.rows), slice(None), slice(self.length))
        return self.pool.keys[layer][view], self.pool.values[layer][view]


def writer(
    pool: Pool, spans: Iterable[tuple[int, int, int, int]], device: torch.device
) -> Callable[[int, Tensor, Tensor], None]:
    """Writes (token, row, column, length) spans of a forward's keys and values into the pool."""
    parts = [(at + np.arange(n), np.full(n, row), column + np.arange(n)) for at, row, column, n in spans]
    tokens, rows, columns = (torch.from_numpy(np.concatenate(x)).to(device) for x in zip(*parts))
    return lambda layer, key, value: pool.write(layer, rows, columns, key[:, tokens], value[:, tokens])
