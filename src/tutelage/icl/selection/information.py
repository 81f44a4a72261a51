"""Sets of demonstrations chosen by what the model says with them: mutual information, and minimum description length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from tutelage.icl.entropy import entropy, label_probabilities, mutual_information
from tutelage.icl.examples import Example
from tutelage.icl.scoring import Scorer
from tutelage.icl.selection.basic import draw, similarities
from tutelage.icl.selection.context import (
    Options,
    SelectionContext,
    check_texts,
    need_options,
    shared_candidates,
    top,
)
from tutelage.icl.selection.embed import By, EmbeddingOptions


class InformationOptions(Options):
    """Options of `information`."""

    sets: int = Field(default=20, ge=1)
    """Random sets of demonstrations to choose among."""
    inputs: int = Field(default=64, ge=1)
    """Inputs, without their labels, by which the sets are judged: the first drawn of the queries."""
    balanced: bool = False
    """Every label equally often in each set."""


def information(
    pool: Sequence[Example], queries: Sequence[Example], shots: int, context: SelectionContext, seed: int
) -> list[list[int]]:
    """The random set whose predictions share most information with the inputs (Sorensen et al. 2022, arXiv 2203.11364).

    No label of a query is read. One scorer call, sets times inputs.
    """
    options = context.read(InformationOptions, "information")
    scorer = context.need_scorer("information")
    left = shared_candidates(pool, queries, shots, "information")
    if not queries:
        return []
    need_options(queries, "information")
    rng = np.random.default_rng(seed)
    sets = [draw(pool, left, shots, options.balanced, rng) for _ in range(options.sets)]
    seen = [queries[i] for i in sorted(rng.permutation(len(queries))[: options.inputs])]
    found = mutual_information(scorer([[pool[i] for i in chosen] for chosen in sets], seen))
    best = sets[int(found.argmax())]
    return [list(best) for _ in queries]


class MdlOptions(EmbeddingOptions):
    """Options of `mdl`."""

    by: By = "bm25"
    """How the query's neighbours are found."""
    sets: int = Field(default=5, ge=1)
    """Sets to choose among: the nearest examples, and random ones."""
    candidates: int = Field(default=30, ge=1)
    """Neighbours of a query from which its sets are drawn (at least ``shots`` are taken)."""
    shared: bool = False
    """Draw the sets once for all queries, from the whole pool: one scorer call, and each set is computed once."""


def mdl(
    pool: Sequence[Example], queries: Sequence[Example], shots: int, context: SelectionContext, seed: int
) -> list[list[int]]:
    """Per query the set with which the model is surest of its label: lowest entropy (Wu et al. 2023, arXiv 2212.10375).

    The first set is the nearest examples, the others random subsets of the neighbours. A query's own sets are nobody
    else's, so they are scored in a call of their own; ``shared`` sets in one call with all the queries.
    """
    options = context.read(MdlOptions, "mdl")
    scorer = context.need_scorer("mdl")
    check_texts(pool, queries, "mdl")
    if not queries:
        return []
    need_options(queries, "mdl")
    rng = np.random.default_rng(seed)
    scores = similarities(pool, queries, options, context)
    if options.shared:
        return _shared(pool, queries, shots, options.sets, scores, rng, scorer)
    out = []
    for query, near in zip(queries, top(scores, pool, queries, shots, "mdl", most=options.candidates)):
        sets = [near[:shots], *(draw(pool, near, shots, False, rng) for _ in range(options.sets - 1))]
        logprobs = scorer([[pool[i] for i in chosen] for chosen in sets], [query])
        out.append(sets[int(entropy(label_probabilities(logprobs))[:, 0].argmin())])
    return out


def _shared(
    pool: Sequence[Example],
    queries: Sequence[Example],
    shots: int,
    sets: int,
    scores_QN: np.ndarray,
    rng: np.random.Generator,
    scorer: Scorer,
) -> list[list[int]]:
    """Each query's best of the same few sets: those nearest to all queries on average, and random ones."""
    left = shared_candidates(pool, queries, shots, "mdl")
    nearest = sorted(left, key=lambda i: -float(scores_QN[:, i].mean()))[:shots]
    drawn = [nearest, *(draw(pool, left, shots, False, rng) for _ in range(sets - 1))]
    logprobs = scorer([[pool[i] for i in chosen] for chosen in drawn], queries)
    return [list(drawn[s]) for s in entropy(label_probabilities(logprobs)).argmin(axis=0)]
