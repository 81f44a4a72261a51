"""Vote-k: which few examples are worth annotating, so that every query finds a neighbour among them.

N: examples of the pool, K: neighbours that each votes for.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from tutelage.core.errors import ConfigError, DataError
from tutelage.engine.requests import SamplingParams
from tutelage.icl.examples import Example
from tutelage.icl.prompts import Prompter
from tutelage.icl.scoring import Job, score_jobs
from tutelage.icl.selection.context import SelectionContext, check_texts, shared_candidates, top
from tutelage.icl.selection.embed import EmbeddingOptions, Rows, embed, similarity

log = logging.getLogger("tutelage")


class VoteKOptions(EmbeddingOptions):
    """Options of `vote_k`; ``similarity`` is cosine."""

    budget: int = Field(default=100, ge=1)
    """Examples that may be annotated (the paper: 18 and 100)."""
    neighbours: int = Field(default=150, ge=1)
    """Edges of each example in the graph; fewer where the pool is smaller."""
    confidence: bool = True
    """The second stage, which asks the model; False picks all by the graph ("fast vote-k")."""
    max_tokens: int = Field(default=32, ge=1)
    """Longest prediction whose confidence is taken, where examples have no options."""


class Votes:
    """The directed graph: each example votes for its K nearest; and what has been picked so far.

    Score of u: the sum over its supporters v that are not picked of 10 ** -s(v), s(v) being how many of the examples
    that v votes for are picked already (Su et al. 2023, arXiv 2209.01975).
    """

    def __init__(self, edges_NK: np.ndarray) -> None:
        self.edges = edges_NK
        self.picked = np.zeros(len(edges_NK), dtype=bool)
        self.supports = np.zeros(len(edges_NK), dtype=np.int64)

    def scores(self) -> np.ndarray:
        """The score [N] of each example now."""
        weights = np.where(self.picked, 0.0, 10.0**-self.supports)
        width = self.edges.shape[1]
        return np.bincount(self.edges.ravel(), weights=np.repeat(weights, width), minlength=len(weights))

    def pick(self, among: Sequence[int] | np.ndarray | None = None) -> int:
        """Pick the highest score (ties: the lowest index) among those not picked, or among some of them."""
        scores = np.where(self.picked, -np.inf, self.scores())
        best = int(scores.argmax()) if among is None else int(among[int(scores[np.asarray(among)].argmax())])
        self.picked[best] = True
        self.supports += (self.edges == best).any(axis=1)
        return best


def nearest_of(rows: Rows, neighbours: int, block: int = 1024) -> np.ndarray:
    """Indices [N, K] of each row's K nearest others by cosine, nearest first, ties to the lower index.

    ``block`` rows at a time: all cosines of 30,000 examples would take 7 GB.
    """
    count = rows.shape[0]
    width = min(neighbours, count - 1)
    out = np.empty((count, width), dtype=np.int64)
    for start in range(0, count, block):
        mine = np.arange(start, min(start + block, count))
        cosines = similarity(rows[mine], rows, "cosine")
        cosines[np.arange(len(mine)), mine] = -np.inf
        out[mine] = np.argsort(-cosines, axis=1, kind="stable")[:, :width]
    return out


def vote_k(
    pool: Sequence[Example], queries: Sequence[Example], shots: int, context: SelectionContext, seed: int
) -> list[list[int]]:
    """Pick ``budget`` examples by votes and by the model's confidence; each query gets its nearest among them.

    Su et al. 2023 (arXiv 2209.01975, "Selective annotation makes language models better few-shot learners"). The pool's
    answers are read only of the examples that were picked.
    """
    options = context.read(VoteKOptions, "vote_k")
    check_texts(pool, queries, "vote_k")
    left = shared_candidates(pool, queries, shots, "vote_k")
    if options.budget < shots:
        raise ConfigError(f"select=vote_k: budget={options.budget} annotations are fewer than shots={shots}")
    rows, query_rows = embed([[e.text for e in pool], [e.text for e in queries]], options, context)
    rows = rows[left]
    members = [pool[i] for i in left]
    annotated = annotate(members, rows, shots, options, context)
    near = similarity(query_rows, rows[annotated], "cosine")
    chosen = top(near, [members[i] for i in annotated], queries, shots, "vote_k")
    return [[left[annotated[i]] for i in one] for one in chosen]


def annotate(
    members: Sequence[Example], rows: Rows, shots: int, options: VoteKOptions, context: SelectionContext
) -> list[int]:
    """Indices of the examples to annotate, in the order of picking: a tenth by votes, the rest by both stages."""
    budget = min(options.budget, len(members))
    if budget == len(members):
        return list(range(budget))
    votes = Votes(nearest_of(rows, options.neighbours))
    if not options.confidence:
        return [votes.pick() for _ in range(budget)]
    first = [votes.pick() for _ in range(max(1, budget // 10))]
    rest = [i for i in range(len(members)) if not votes.picked[i]]
    cosines = similarity(rows[rest], rows[first], "cosine")
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :shots]
    shown = [[members[first[j]] for j in row][::-1] for row in nearest]  # the nearest stands next to the question
    sure = confidences([members[i] for i in rest], shown, options.max_tokens, context)
    ascending = np.array(rest)[np.argsort(sure, kind="stable")]
    return [*first, *(votes.pick(bucket) for bucket in buckets(ascending, budget - len(first)))]


def buckets(ascending: np.ndarray, count: int) -> list[np.ndarray]:
    """The least confident nine tenths in ``count`` parts of equal size (by one), so that every level is picked from.

    Where nine tenths are fewer than ``count``, all are taken.
    """
    uncertain = max(int(len(ascending) * 0.9), min(count, len(ascending)))
    return np.array_split(ascending[:uncertain], count)


def confidences(
    members: Sequence[Example], shown: Sequence[Sequence[Example]], max_tokens: int, context: SelectionContext
) -> np.ndarray:
    """Mean log-prob of a token of the model's own prediction, [N]: its best option, or its greedy continuation.

    The farthest demonstrations go where a prompt would not fit. What cannot be predicted at all counts as the least
    confident, which the log says.
    """
    engine, prompter = context.need_engine("vote_k"), Prompter(context.need_format("vote_k"))
    if all(e.options for e in members):
        which = [(i, i) for i in range(len(members))]
        scores = score_jobs(engine, [Job(prompter, shown, members, which)])[0]
        if scores.too_long:
            log.warning("select=vote_k: %d examples are too long for the model's context", len(scores.too_long))
        return np.array([_best(*parts) for parts in zip(scores.logprob, scores.tokens)])
    fitted = [_fitting(engine, prompter, demos, e, max_tokens) for demos, e in zip(shown, members)]
    stop = prompter.format.separator
    params = SamplingParams(max_tokens=max_tokens, temperature=0, stop=(stop,) if stop else ())
    return np.array([_mean(output) for output in engine.generate(fitted, params)])


def _best(logprobs: np.ndarray, tokens: np.ndarray) -> float:
    """Log-prob a token of the most likely option."""
    return float((logprobs / tokens)[logprobs.argmax()]) if len(logprobs) else -np.inf


def _fitting(engine: Any, prompter: Prompter, shown: Sequence[Example], query: Example, room: int) -> str:
    """The prompt without as many of its first demonstrations as must go for ``room`` more tokens to fit.

    An engine on a server has no tokenizer to count with: nothing goes, and the server says what does not fit.
    """
    text: str = prompter.prompt(shown, query)
    while shown and hasattr(engine, "tokenizer") and len(engine.encode(text)) + room > engine.context_length:
        shown = shown[1:]
        text = prompter.prompt(shown, query)
    return text


def _mean(output: Any) -> float:
    """Mean log-prob of a greedy continuation's tokens. DataError where the engine gives none."""
    if output.error is not None:
        log.warning("select=vote_k: no prediction for an example (%s)", output.error)
        return -np.inf
    logprobs = output.completions[0].logprobs
    if not logprobs:
        raise DataError("select=vote_k: predictions came without log-probs; set confidence=false or use a local model")
    return float(np.mean(logprobs))
