"""A learned retriever: which demonstrations raise the log-prob of the right answer, learnt from the model itself.

N: examples of the pool, L: candidates of one, B: batch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from tutelage.core.errors import ConfigError, DataError
from tutelage.core.runtime import generators_kept, reseed
from tutelage.icl.examples import Example
from tutelage.icl.prompts import Prompter
from tutelage.icl.scoring import Job, score_jobs
from tutelage.icl.selection.context import (
    Options,
    SelectionContext,
    check_texts,
    first_copies,
    own_places,
    top,
)
from tutelage.icl.selection.lexical import bm25
from tutelage.icl.selection.retriever import Retriever, take
from tutelage.loss.contrastive import info_nce
from tutelage.train.optim import OptimConfig, Optimizers

log = logging.getLogger("tutelage")


class EprOptions(Options):
    """Options of `epr`."""

    retriever: str | None = None
    """Folder of a trained retriever; without it one is trained on the pool."""
    save: str | None = None
    """Folder to write the trained retriever to."""
    encoder: str = "tfidf"
    """tfidf, hidden (frozen states of the local model), or a Hugging Face encoder's name (the paper: BERT-base)."""
    dim: int = Field(default=64, ge=1)
    """Width of the vectors that are compared (of a Hugging Face encoder: its own)."""
    hidden: int = Field(default=0, ge=0)
    """Width of a hidden layer; 0 is a linear map."""
    examples: int = Field(default=300, ge=1)
    """Examples of the pool, drawn by the seed, whose candidates the language model scores (the paper: all)."""
    candidates: int = Field(default=50, ge=2)
    """Candidates of each, by BM25."""
    candidates_by: Literal["answer", "input", "both"] = "answer"
    """What BM25 compares; answer is the paper's best setup."""
    ends: int = Field(default=5, ge=1)
    """The best and the worst so many of the candidates are positives and hard negatives."""
    epochs: int = Field(default=30, ge=1)
    batch_size: int = Field(default=60, ge=1)
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate; by default 1e-2 for words, 3e-3 for states and 2e-5 for a Hugging Face encoder."""
    temperature: float = Field(default=0.1, gt=0)
    """The inner products are divided by it in the loss."""


@dataclass(frozen=True)
class Mined:
    """What one example of the pool learns from: indices into the pool, best candidates first, worst last."""

    example: int
    positives: tuple[int, ...]
    negatives: tuple[int, ...]


def epr(
    pool: Sequence[Example], queries: Sequence[Example], shots: int, context: SelectionContext, seed: int
) -> list[list[int]]:
    """The nearest by a retriever trained on the model's own scores (EPR: Rubin et al. 2022, arXiv 2112.08633)."""
    options = context.read(EprOptions, "epr")
    check_texts(pool, queries, "epr")
    own_places(pool, queries, shots, "epr")
    if options.retriever is not None and options.save is not None:
        raise ConfigError("select=epr: retriever= loads a trained one and save= keeps a new one; give one of them")
    form = context.need_format("epr")
    if options.retriever is not None:
        retriever = Retriever.load(options.retriever, context)
    else:
        asked = {query.text for query in queries}  # to learn from a query would be to read its answer
        retriever = train([e for e in pool if e.text not in asked], options, context, seed)
        if options.save is not None:
            retriever.save(options.save)
    passages = retriever.vectors([form.demonstration(e) for e in pool], "passage")
    wanted = retriever.vectors([e.text for e in queries], "query")
    return top(wanted @ passages.T, pool, queries, shots, "epr")


def train(pool: Sequence[Example], options: EprOptions, context: SelectionContext, seed: int) -> Retriever:
    """A retriever trained on the pool: candidates by BM25, scores by the engine, InfoNCE with in-batch negatives."""
    mined = mine(pool, options, context, seed)
    form = context.need_format("epr")
    texts = [form.demonstration(e) for e in pool]
    retriever = Retriever.create(
        options.encoder, [*texts, *(e.text for e in pool)], options.dim, options.hidden, seed, context
    )
    losses = fit(retriever, [e.text for e in pool], texts, mined, options, seed)
    log.info("epr: %d examples, loss %.3f in the first epoch, %.3f in the last", len(mined), losses[0], losses[-1])
    return retriever


def mine(pool: Sequence[Example], options: EprOptions, context: SelectionContext, seed: int) -> list[Mined]:
    """Positives and hard negatives of up to ``examples`` of the pool, in one engine.score call.

    Each candidate e is scored by log P(y | e, x), the answer's tokens summed. What exceeds the model's context is left
    out, which the log says. DataError where an answer is empty, or nothing is left to learn from.
    """
    engine, form = context.need_engine("epr"), context.need_format("epr")
    copies = first_copies(pool)
    if len(copies) < 3:
        raise DataError(f"select=epr: {len(copies)} distinct examples are too few to learn from; at least 3 are needed")
    rng = np.random.default_rng(seed)
    learners = sorted(int(i) for i in rng.permutation(copies)[: options.examples])
    silent = [i for i in learners if not pool[i].answer.strip()]
    if silent:
        raise DataError(f"select=epr learns from answers, and that of {pool[silent[0]].text[:60]!r} is empty")
    found = _candidates(pool, learners, copies, options, rng)
    place = {i: s for s, i in enumerate(copies)}
    which = [(place[j], q) for q, candidates in enumerate(found) for j in candidates]
    asked = [replace(pool[i], options=(pool[i].answer,), gold=0) for i in learners]  # the right answer alone is scored
    scores = score_jobs(engine, [Job(Prompter(form), [(pool[i],) for i in copies], asked, which)])[0]
    out_of_reach = {copies[s] for s in scores.dropped}  # without its demonstration a set says nothing about it
    if out_of_reach or scores.too_long:
        log.warning("epr: %d demonstrations and %d queries are too long for the model's context and are left out",
                    len(out_of_reach), len(scores.too_long))  # fmt: skip
    values: list[dict[int, float]] = [{} for _ in learners]
    for (s, q), logprobs in zip(which, scores.logprob):
        if len(logprobs) and copies[s] not in out_of_reach:
            values[q][copies[s]] = float(logprobs[0])
    mined = [_ends(i, of, options.ends) for i, of in zip(learners, values) if len(of) > 1]
    if not mined:
        raise DataError("select=epr: no example has two candidates that can be scored; shorten the examples")
    return mined


def _ends(example: int, values: dict[int, float], ends: int) -> Mined:
    """The best and the worst candidates, at most half of them each; ties as they came."""
    order = sorted(values, key=lambda j: -values[j])
    ends = min(ends, len(order) // 2)
    return Mined(example, tuple(order[:ends]), tuple(order[-ends:]))


def _candidates(
    pool: Sequence[Example],
    learners: Sequence[int],
    copies: Sequence[int],
    options: EprOptions,
    rng: np.random.Generator,
) -> list[list[int]]:
    """The BM25 candidates of each learner, itself left out; ties in random order, as labels give many of them."""
    read = {
        "answer": lambda e: e.answer,
        "input": lambda e: e.text,
        "both": lambda e: f"{e.text}\n{e.answer}",
    }[options.candidates_by]
    shuffled = [int(i) for i in rng.permutation(copies)]
    scores = bm25([read(pool[i]) for i in shuffled], [read(pool[i]) for i in learners])
    order = np.argsort(-scores, axis=1, kind="stable")
    return [
        [shuffled[j] for j in row if shuffled[j] != i][: options.candidates] for i, row in zip(learners, order.tolist())
    ]


def fit(
    retriever: Retriever,
    queries: Sequence[str],
    passages: Sequence[str],
    mined: Sequence[Mined],
    options: EprOptions,
    seed: int,
) -> list[float]:
    """Train in place; the mean loss of each epoch.

    A batch's passages are a positive and a hard negative of each of its queries; a query's other positives, and
    itself, are no negatives of it. ``queries`` and ``passages``: the pool's texts, by index.
    """
    query_inputs, passage_inputs = retriever.inputs(queries), retriever.inputs(passages)
    lr = options.lr or {"tfidf": 1e-2, "hidden": 3e-3}.get(options.encoder, 2e-5)
    optimizers = Optimizers(retriever, OptimConfig(lr=lr, decay=1.0))
    rng = np.random.default_rng(seed)
    barred = np.zeros((len(mined), len(passages)), dtype=bool)
    for row, one in enumerate(mined):
        barred[row, [one.example, *one.positives]] = True
    losses = []
    with generators_kept():  # a Hugging Face encoder has dropout
        reseed(seed, "epr")
        retriever.train()
        for epoch in range(options.epochs):
            order = rng.permutation(len(mined))
            starts = range(0, len(order), options.batch_size)
            total = 0.0
            for step, start in enumerate(starts):
                rows = order[start : start + options.batch_size]
                chosen = [rng.choice(mined[r].positives) for r in rows] + [rng.choice(mined[r].negatives) for r in rows]
                asked = retriever(take(query_inputs, [mined[r].example for r in rows]), "query")
                told = retriever(take(passage_inputs, chosen), "passage")
                excluded = torch.from_numpy(barred[np.ix_(rows, chosen)])
                loss, _ = info_nce(asked @ told.T / options.temperature, torch.arange(len(rows)), excluded)
                loss.backward()
                optimizers.step((epoch * len(starts) + step) / (options.epochs * len(starts)))
                total += float(loss.detach()) * len(rows)
            losses.append(total / len(order))
    return losses
