"""Random, fixed, nearest neighbours, and lowest perplexity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from tutelage.core.errors import ConfigError, DataError
from tutelage.icl.examples import Example
from tutelage.icl.selection.context import (
    Options,
    SelectionContext,
    check_shots,
    check_texts,
    need_options,
    own_places,
    score_all,
    shared_candidates,
    top,
)
from tutelage.icl.selection.embed import By, EmbeddingOptions, embed, similarity
from tutelage.icl.selection.lexical import bm25


class RandomOptions(Options):
    """Options of `random`."""

    balanced: bool = False
    """Every label equally often; what is left over goes to labels drawn at random."""
    per_query: bool = False
    """Draw anew for every query; the default is one set for all, whose keys and values are computed once."""


def random(
    pool: Sequence[Example], queries: Sequence[Example], shots: int, context: SelectionContext, seed: int
) -> list[list[int]]:
    """Drawn uniformly without replacement (Brown et al. 2020, arXiv 2005.14165): the baseline of every other method."""
    options = context.read(RandomOptions, "random")
    left = shared_candidates(pool, queries, shots, "random")
    rng = np.random.default_rng(seed)
    if options.per_query:
        return [draw(pool, left, shots, options.balanced, rng) for _ in queries]
    chosen = draw(pool, left, shots, options.balanced, rng)
    return [list(chosen) for _ in queries]


def draw(
    pool: Sequence[Example], left: Sequence[int], shots: int, balanced: bool, rng: np.random.Generator
) -> list[int]:
    """``shots`` of the indices ``left`` in random order. DataError when a label has too few examples for balance."""
    if not balanced:
        return [int(i) for i in rng.permutation(np.array(left, dtype=np.int64))[:shots]]
    labels = need_options([pool[i] for i in left], "random (balanced)") if left else 0
    wanted = np.full(labels, shots // labels if labels else 0)
    if labels:
        wanted[rng.permutation(labels)[: shots % labels]] += 1
    chosen: list[int] = []
    for label in range(labels):
        of_label = [i for i in left if pool[i].gold == label]
        if len(of_label) < wanted[label]:
            name = pool[left[0]].options[label]
            raise DataError(
                f"balanced demonstrations need {wanted[label]} examples of label {name!r} and the pool has "
                f"{len(of_label)}; lower shots= or leave balanced out"
            )
        chosen += [int(i) for i in rng.permutation(np.array(of_label, dtype=np.int64))[: wanted[label]]]
    return [int(i) for i in rng.permutation(np.array(chosen, dtype=np.int64))]


class FixedOptions(Options):
    """Options of `fixed`."""

    indices: tuple[int, ...] | None = None
    """The examples to take, in order; without them the pool's first."""


def fixed(
    pool: Sequence[Example], queries: Sequence[Example], shots: int, context: SelectionContext, seed: int
) -> list[list[int]]:
    """The same for every query: given indices, else the pool's first ``shots`` (lm-evaluation-harness's first_n)."""
    indices = context.read(FixedOptions, "fixed").indices
    if indices is None:
        chosen = shared_candidates(pool, queries, shots, "fixed")[:shots]
        return [list(chosen) for _ in queries]
    check_shots(shots)
    wrong = [i for i in indices if not 0 <= i < len(pool)]
    if wrong:
        raise ConfigError(f"select=fixed: indices {wrong} are outside the pool, which has {len(pool)} examples")
    if len(set(indices)) < len(indices):
        raise ConfigError(f"select=fixed: an index occurs twice in {list(indices)}")
    if len(indices) < shots:
        raise ConfigError(f"select=fixed: shots={shots}, but indices= names {len(indices)} examples")
    return [list(indices[:shots]) for _ in queries]


class KnnOptions(EmbeddingOptions):
    """Options of `knn`."""

    by: By = "bm25"


def knn(
    pool: Sequence[Example], queries: Sequence[Example], shots: int, context: SelectionContext, seed: int
) -> list[list[int]]:
    """The pool's examples most like the query (KATE: Liu et al. 2022, arXiv 2101.06804)."""
    check_texts(pool, queries, "knn")
    return top(similarities(pool, queries, context.read(KnnOptions, "knn"), context), pool, queries, shots, "knn")


def similarities(
    pool: Sequence[Example], queries: Sequence[Example], options: EmbeddingOptions, context: SelectionContext
) -> np.ndarray:
    """How like each query each example of the pool is, float64 [Q, N]; larger is nearer."""
    texts, asked = [e.text for e in pool], [e.text for e in queries]
    if options.by == "bm25":
        if options.similarity != "cosine":
            raise ConfigError("by=bm25 has a measure of its own; leave similarity= out")
        return bm25(texts, asked)
    rows, query_rows = embed([texts, asked], options, context)
    return similarity(query_rows, rows, options.similarity)


class PerplexityOptions(Options):
    """Options of `perplexity`."""

    of: Literal["demonstration", "input"] = "demonstration"
    """What the model reads: the rendered demonstration with its answer, or the input alone (no labels needed)."""


def perplexity(
    pool: Sequence[Example], queries: Sequence[Example], shots: int, context: SelectionContext, seed: int
) -> list[list[int]]:
    """The examples that the model finds least surprising: lowest mean negative log-likelihood a token.

    SPELL (Gonen et al. 2023, arXiv 2212.04037) ranks whole prompts so; here each demonstration is ranked by itself.
    Examples beyond the model's context are left out, which the log says.
    """
    options = context.read(PerplexityOptions, "perplexity")
    engine, form = context.need_engine("perplexity"), context.format
    check_texts(pool, queries, "perplexity")
    own_places(pool, queries, shots, "perplexity")
    if options.of == "demonstration":
        form = context.need_format("perplexity")
        texts = [form.demonstration(e) for e in pool]
    else:
        texts = [form.query(e) if form else e.text for e in pool]
    scores = score_all(engine, [("", text) for text in texts], f"select=perplexity, each {options.of} of the pool")
    kept = [i for i, score in enumerate(scores) if score is not None]
    means = np.array([scores[i].logprob / len(scores[i].token_logprobs) for i in kept])
    chosen = top(np.tile(means, (len(queries), 1)), [pool[i] for i in kept], queries, shots, "perplexity")
    return [[kept[i] for i in one] for one in chosen]
