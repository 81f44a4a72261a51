"""Determinantal point process: demonstrations that are near the query and unlike each other.

N: candidates of one query.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from tutelage.icl.examples import Example
from tutelage.icl.selection.context import SelectionContext, check_texts, top
from tutelage.icl.selection.embed import EmbeddingOptions, embed, similarity


class DppOptions(EmbeddingOptions):
    """Options of `dpp`; ``similarity`` is cosine."""

    candidates: int = Field(default=100, ge=1)
    """Nearest examples among which the process chooses. It must be well above ``shots``: with as many candidates as
    shots there is nothing to choose."""
    weight: float = Field(default=0.1, gt=0)
    """lambda: smaller trusts relevance more, larger diversity."""


def dpp(
    pool: Sequence[Example], queries: Sequence[Example], shots: int, context: SelectionContext, seed: int
) -> list[list[int]]:
    """Greedy maximum a posteriori set of a DPP over the nearest examples.

    L = diag(r) S diag(r) with S_ij = (cos(e_i, e_j) + 1) / 2 and r_i = exp((s_i - max s) / (2 lambda)), where s_i =
    (cos(q, e_i) + 1) / 2. The chosen are given by falling relevance.
    CEIL (Ye et al. 2023, arXiv 2302.05698) without its training, as OpenICL has it.
    """
    options = context.read(DppOptions, "dpp")
    check_texts(pool, queries, "dpp")
    rows, query_rows = embed([[e.text for e in pool], [e.text for e in queries]], options, context)
    near = similarity(query_rows, rows, "cosine")
    out = []
    for q, found in enumerate(top(near, pool, queries, shots, "dpp", most=options.candidates)):
        among = rows[found]
        relevance = relevance_of(near[q, found], options.weight)
        chosen = greedy_map(relevance, (similarity(among, among, "cosine") + 1) / 2, shots)
        # fewer than `shots` are independent: the nearest of the rest fill the places (candidates come nearest first)
        rest = [i for i in range(len(found)) if i not in set(chosen)]
        chosen = sorted([*chosen, *rest[: shots - len(chosen)]], key=lambda i: (-relevance[i], i))
        out.append([found[i] for i in chosen])
    return out


def relevance_of(cosines_N: np.ndarray, weight: float) -> np.ndarray:
    """r [N] of each candidate, from its cosine to the query; the nearest has 1."""
    s = (cosines_N + 1) / 2
    return np.exp((s - s.max()) / (2 * weight)) if len(s) else s


def greedy_map(relevance_N: np.ndarray, kernel_NN: np.ndarray, size: int, floor: float = 1e-10) -> list[int]:
    """Indices in the order of choice, each the one that raises log det of r S r on the chosen most.

    Chen et al. 2018 (arXiv 1709.05135), algorithm 1: the Cholesky row of each candidate grows by one entry a step,
    O(N size^2) in all. Fewer than ``size`` come back when what is left adds nothing (a factor below ``floor``).
    """
    count = len(relevance_N)
    gain = relevance_N**2 * kernel_NN.diagonal()  # det of the chosen with i, divided by det of the chosen
    cholesky = np.zeros((min(size, count), count))
    chosen: list[int] = []
    while len(chosen) < min(size, count):
        best = int(gain.argmax())
        if gain[best] < floor:
            break
        step = len(chosen)
        row = relevance_N[best] * kernel_NN[best] * relevance_N
        cholesky[step] = (row - cholesky[:step, best] @ cholesky[:step]) / np.sqrt(gain[best])
        gain = gain - cholesky[step] ** 2
        chosen.append(best)
        gain[chosen] = -np.inf
    return chosen
