"""Auto-CoT (Zhang et al. 2022): demonstrations from the questions themselves, one a cluster, reasoned by the model.

Gold answers are never looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.sparse import issparse

from tutelage.core.errors import ConfigError, DataError
from tutelage.icl.reasoning.asking import Asker, Engine
from tutelage.icl.reasoning.chains import demonstrated_answers, reason_then_answer
from tutelage.icl.reasoning.problems import Problem
from tutelage.icl.reasoning.settings import Embed, ProblemResult, ReasonResult, ReasonSettings
from tutelage.icl.selection.context import SelectionContext
from tutelage.icl.selection.embed import EmbeddingOptions, row_norms
from tutelage.icl.selection.embed import embed as encode

SENTENCE_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
"""The paper's."""


def auto_cot(engine: Engine, problems: Sequence[Problem], settings: ReasonSettings, seed: int = 0) -> ReasonResult:
    """Cluster the questions, let the model reason about those nearest each centre, and show what passes the rules.

    The paper's k-means has seed 192. The demonstrations made are the result's ``exemplars``. A cluster none of whose
    questions passes gives none, and a note says so; with no demonstration at all it is zero-shot reasoning.
    """
    asker = Asker(engine, problems, seed)
    pool = list(settings.pool) or list(asker.problems)
    vectors = embed([p.question for p in pool], settings.embed, engine)
    k = min(settings.clusters, len({p.question for p in pool}))
    if k < settings.clusters:
        asker.note(f"{k} different questions give {k} clusters, {settings.clusters} were asked for")
    demonstrations = _demonstrate(asker, pool, clustered(vectors, k, seed), settings)
    return demonstrated_answers(asker, "auto_cot", settings, demonstrations, True, settings.trigger)


def clustered(vectors: Any, k: int, seed: int) -> list[list[int]]:
    """k-means: the rows [n, d] of each of k clusters, nearest its centre first."""
    from sklearn.cluster import KMeans  # a second to import

    model = KMeans(n_clusters=k, random_state=seed % 2**32, n_init=10).fit(vectors)
    order = np.argsort(model.transform(vectors).min(1), kind="stable")
    return [[int(i) for i in order if model.labels_[i] == cluster] for cluster in range(k)]


def _demonstrate(
    asker: Asker, pool: Sequence[Problem], clusters: Sequence[Sequence[int]], settings: ReasonSettings
) -> list[Problem]:
    """One demonstration a cluster, in their order.

    Every round asks about the next questions of all clusters still without one, each round twice as many: few more
    than the rules need, in few calls.
    """
    short = [[i for i in c if len(pool[i].question.split()) <= settings.max_question_words] for c in clusters]
    short = [c[: settings.max_candidates] for c in short]
    made: dict[int, Problem] = {}
    at, size = 0, 2
    while asked := [(c, i) for c, left in enumerate(short) if c not in made for i in left[at : at + size]]:
        results = reason_then_answer(asker, [pool[i] for _, i in asked], settings)
        for (cluster, _), result in zip(asked, results, strict=True):
            if cluster not in made and (found := demonstration(result, settings.max_steps)) is not None:
                made[cluster] = found
        at, size = at + size, size * 2
    missing = len(clusters) - len(made)
    if missing:
        asker.note(f"{missing} of {len(clusters)} clusters have no question whose reasoning passes the rules")
    return [made[c] for c in sorted(made)]


def demonstration(result: ProblemResult, max_steps: int = 5) -> Problem | None:
    """The problem with the model's reasoning and answer for its own, where they pass Auto-CoT's rules.

    Reasoning of at most ``max_steps`` lines that ends with a full stop; an answer; and for numbers the answer in the
    last sentence or among the last ten words.
    """
    answer = result.prediction
    if not answer or not result.paths or len(result.paths[0].stages) != 2:
        return None
    thought = result.paths[0].stages[0].strip()
    lines = thought.replace("\n\n", "\n").split("\n")
    if not thought.endswith(".") or len(lines) > max_steps:
        return None
    if result.problem.kind == "number":
        last = thought.split(".")[-2]
        if answer not in last and answer not in thought.split()[-10:]:
            return None
    try:
        return replace(result.problem, answer=answer, rationale=" ".join(thought.split()))
    except DataError:  # an answer that is none of the kind
        return None


def embed(texts: Sequence[str], how: Embed, engine: Any) -> Any:
    """Vectors float64 [texts, d] of length 1, but for a function's own; those of TF-IDF are a sparse matrix.

    ConfigError where the encoder is not there.
    """
    if callable(how):
        vectors = np.asarray(how(texts), dtype=np.float64)
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise ConfigError(f"embed gave an array of shape {vectors.shape}, expected [{len(texts)}, d]")
        return vectors
    (rows,) = encode([texts], EmbeddingOptions(by=how, encoder=SENTENCE_MODEL), SelectionContext(engine))
    if issparse(rows):  # of length 1 as they are
        return rows
    return rows / np.maximum(row_norms(rows)[:, None], 1e-300)
