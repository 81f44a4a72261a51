"""Which demonstrations stand before a query.

Every selector is called as ``selector(pool, queries, shots, context, seed)`` and gives, per query, the indices of its
demonstrations in the pool, most relevant first; `generated` gives the demonstrations themselves. ``demonstrations``
turns either into examples. Which of them stands next to the query is the order's business, not the selector's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tutelage.icl.examples import Example
from tutelage.icl.selection.basic import fixed, knn, perplexity, random
from tutelage.icl.selection.context import Selection, SelectionContext, demonstrations
from tutelage.icl.selection.dpp import dpp
from tutelage.icl.selection.epr import epr
from tutelage.icl.selection.generated import generated
from tutelage.icl.selection.information import information, mdl
from tutelage.icl.selection.votek import vote_k

Selector = Callable[[Sequence[Example], Sequence[Example], int, SelectionContext, int], Selection]

SELECTORS: dict[str, Selector] = {
    "random": random,
    "fixed": fixed,
    "knn": knn,
    "information": information,
    "perplexity": perplexity,
    "generated": generated,
    "vote_k": vote_k,
    "dpp": dpp,
    "mdl": mdl,
    "epr": epr,
}
"""What ``select=`` may name."""

__all__ = ["SELECTORS", "Selection", "SelectionContext", "Selector", "demonstrations"]
