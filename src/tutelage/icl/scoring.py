"""From log-probabilities of continuations to a distribution over answers: directions, normalisations, calibration.

Everything of one call goes to the engine at once, which computes what prompts begin with alike once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from tutelage.core.errors import ConfigError, DataError
from tutelage.engine.requests import Cloze, Score
from tutelage.icl.encode import Encoded, Encoder
from tutelage.icl.examples import Example
from tutelage.icl.prompts import Prompter, fill, with_fields

Scorer = Callable[[Sequence[Sequence[Example]], Sequence[Example]], np.ndarray]
"""scorer(sets, queries) -> log P(option | demonstrations, query) [S, Q, L], summed over the option's tokens."""

Norm = Literal["sum", "token", "byte", "pmi", "pmi_empty"]
NORMS = ("sum", "token", "byte", "pmi", "pmi_empty")
CONTENT_FREE = ("N/A", "", "[MASK]")
"""Zhao et al. 2021, section 5: the inputs whose prediction is the bias to be divided out."""


@dataclass
class Scores:
    """What N (set, query) pairs came to. Ragged lists hold one number for each option.

    logprob: nats, summed; tokens, bytes: length of each scored text.
    """

    logprob: list[np.ndarray]
    tokens: list[np.ndarray]
    bytes: list[np.ndarray]
    dropped: dict[int, int] = field(default_factory=dict)
    too_long: list[int] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Job:
    """Scores wanted for each (set, query) of `which`.

    whole: score the whole prompt with the answer rather than the answer alone (perplexity, OpenICL's PPL).
    """

    prompter: Prompter
    sets: Sequence[Sequence[Example]]
    queries: Sequence[Example]
    which: Sequence[tuple[int, int]]
    whole: bool = False


def score_jobs(engine: Any, jobs: Sequence[Job]) -> list[Scores]:
    """Scores of each job, all in one call of the engine. DataError names a pair that cannot be scored."""
    encoded = [Encoder(engine, job.prompter).pairs(job.sets, job.queries, job.which) for job in jobs]
    flat = [
        _whole(*pair) if job.whole else pair for job, e in zip(jobs, encoded) for pairs in e.pairs for pair in pairs
    ]
    found = iter(engine.score(flat) if flat else [])
    return [_collect(job, e, found) for job, e in zip(jobs, encoded, strict=True)]


def _whole(context: Any, continuation: Any) -> tuple[Any, Any]:
    """The pair that scores both: everything behind the first token (or, as text, behind nothing)."""
    if isinstance(context, str):
        return "", context + continuation
    return (context[:1], [*context[1:], *continuation]) if context else ("", continuation)


def _collect(job: Job, encoded: Encoded, found: Iterator[Score]) -> Scores:
    out = Scores([], [], [], encoded.dropped, encoded.too_long)
    lengths: dict[int, np.ndarray] = {}
    for (_, q), pairs in zip(job.which, encoded.pairs, strict=True):
        part = [next(found) for _ in pairs]
        for score, (context, continuation) in zip(part, pairs, strict=True):
            if score.error:
                raise DataError(f"{continuation!r} after {str(context)[-60:]!r}: {score.error}")
        out.logprob.append(np.array([s.logprob for s in part]))
        out.tokens.append(np.array([max(1, len(s.token_logprobs)) for s in part]))
        if q not in lengths:
            texts = [job.prompter.pair(job.queries[q], option)[1] for option in job.queries[q].options]
            lengths[q] = np.array([max(1, len(text.encode())) for text in texts])
        out.bytes.append(lengths[q][: len(part)])
    return out


def scorer(engine: Any, prompter: Prompter) -> Scorer:
    """The plain callable that selectors, orders and instruction search are given."""

    def score(sets: Sequence[Sequence[Example]], queries: Sequence[Example]) -> np.ndarray:
        which = [(s, q) for s in range(len(sets)) for q in range(len(queries))]
        found = score_jobs(engine, [Job(prompter, sets, queries, which)])[0]
        if found.too_long:
            raise DataError(f"{len(found.too_long)} inputs are too long for the model's context; leave them out")
        options = len(queries[0].options) if queries else 0
        if any(len(q.options) != options for q in queries):
            raise DataError("the examples have different numbers of options; this method needs the same labels for all")
        return np.array(found.logprob, dtype=np.float64).reshape(len(sets), len(queries), options)

    return score


def normalised(scores: Scores, norm: Norm, baseline: Sequence[np.ndarray] | None = None) -> list[np.ndarray]:
    """Scores to compare options by: summed, per token, per byte, or less a baseline's (pointwise mutual information).

    baseline: log P(option | nothing of the question), as `unconditional` gives it; needed by the PMI norms.
    """
    if norm == "sum":
        return list(scores.logprob)
    if norm == "token":
        return [a / n for a, n in zip(scores.logprob, scores.tokens, strict=True)]
    if norm == "byte":
        return [a / n for a, n in zip(scores.logprob, scores.bytes, strict=True)]
    if norm in ("pmi", "pmi_empty"):
        if baseline is None:
            raise ConfigError(f"norm={norm} needs the options' unconditional log-probs")
        return [a - b for a, b in zip(scores.logprob, baseline, strict=True)]
    raise ConfigError(f"norm={norm!r}; one of {', '.join(NORMS)}")


def unconditional(engine: Any, prompter: Prompter, queries: Sequence[Example], empty: bool) -> list[np.ndarray]:
    """log P(option | what stands between input and answer) (Holtzman et al. 2021's domain premise), or, with `empty`,
    log P(option | nothing) as lm-eval's acc_mutual_info has it. One array for each query."""
    premise = "" if empty else fill(prompter.format.head, queries[0]).strip() if queries else ""
    tail = "" if empty else fill(prompter.format.tail, queries[0]) if queries else ""
    distinct = list(dict.fromkeys(option for query in queries for option in query.options))
    gap = "" if not premise or not prompter.format.head.endswith(" ") else " "
    place = premise if prompter.read == "continuation" else Cloze(premise, tail)
    found = dict(zip(distinct, engine.score([(place, gap + option) for option in distinct]), strict=True))
    for option, score in found.items():
        if score.error:
            raise DataError(f"{option!r} alone: {score.error}")
    return [np.array([found[option].logprob for option in query.options]) for query in queries]


def probabilities(values: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    shifted = np.exp(values - values.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def content_free(query: Example, texts: Sequence[str] = CONTENT_FREE) -> list[Example]:
    """The query with every field replaced by each of the texts."""
    return [with_fields(query, {name: text for name in query.fields} or {"text": text}) for text in texts]


def calibrate(probs: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Contextual calibration (Zhao et al. 2021, section 5): W = diag(p_cf)^-1, b = 0; probs [..., L], bias [..., L].

    bias: the mean over content-free inputs of the labels' probabilities, behind the same demonstrations.
    """
    scaled = probs / np.maximum(bias / bias.sum(-1, keepdims=True), 1e-300)
    return scaled / scaled.sum(-1, keepdims=True)


def entropy(probs: np.ndarray) -> np.ndarray:
    """Shannon entropy (nats) over the last axis; 0 log 0 is 0."""
    return -(probs * np.log(np.where(probs > 0, probs, 1.0))).sum(-1)


def mutual_information(probs_QL: np.ndarray) -> float:
    """I(Y; X) = H(mean_i P(Y|x_i)) - mean_i H(P(Y|x_i)) in nats (Sorensen et al. 2022, section 3), over rows."""
    return float(entropy(probs_QL.mean(0)) - entropy(probs_QL).mean())
