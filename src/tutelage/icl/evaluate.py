"""Few-shot evaluation: demonstrations chosen, ordered, perhaps changed; options scored; honest statistics.

A sweep's cells of one seed go to the engine in one call, so that what they share is computed once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from tutelage.core.errors import ConfigError, DataError
from tutelage.core.stats import calibration_error, wilson
from tutelage.icl.examples import Example, subsample
from tutelage.icl.order import OrderTools, order_rule
from tutelage.icl.perturb import Corpus, changed, changed_query, condition
from tutelage.icl.prompts import PLACES, READS, Format, Prompter, Read
from tutelage.icl.scoring import (
    NORMS,
    Job,
    Scores,
    calibrate,
    content_free,
    normalised,
    probabilities,
    score_jobs,
    scorer,
    unconditional,
)
from tutelage.icl.selection import SELECTORS, SelectionContext
from tutelage.icl.selection import demonstrations as shown
from tutelage.icl.tasks import Task

Set = tuple[Example, ...]
NEAREST = ("bm25", "tfidf", "hidden", "sentence")
"""Names of `select=` for the nearest neighbours by that measure."""


@dataclass(frozen=True)
class Setting:
    """One cell of a sweep: how a query is prompted and its options compared."""

    shots: int = 4
    select: str = "random"
    order: str = "given"
    score: str = "direct"
    norm: str = "sum"
    calibrate: str = "none"
    condition: str = "gold"
    format: str = "manual"
    instruction: str = ""
    chat: bool = False
    read: str = "auto"
    demos: str = "before"

    def __post_init__(self) -> None:
        checks = {
            "read": READS, "demos": PLACES,
            "score": ("direct", "channel", "perplexity"), "calibrate": ("none", "contextual"),
            "format": ("manual", "minimal"), "norm": NORMS,
        }  # fmt: skip
        for key, known in checks.items():
            if getattr(self, key) not in known:
                raise ConfigError(f"{key}={getattr(self, key)!r}; one of {', '.join(known)}")
        condition(self.condition)
        _selector(self.select)
        order_rule(self.order)
        if self.read in ("mask", "sentinel") and self.score != "direct":
            raise ConfigError(f"read={self.read} reads an answer, and score={self.score} scores the text; score=direct")
        if self.shots < 0:
            raise ConfigError(f"shots={self.shots}; 0 or more")
        if self.calibrate != "none" and self.score != "direct":
            raise ConfigError(f"calibrate={self.calibrate} divides by P(label | N/A), which score={self.score} has not")
        if self.norm in ("pmi", "pmi_empty") and (self.score != "direct" or self.chat):
            raise ConfigError(f"norm={self.norm} is for score=direct without chat: it divides by P(option | template)")
        if self.score == "perplexity" and self.norm != "sum":
            raise ConfigError(f"norm={self.norm}: score=perplexity is a mean over tokens already; leave norm out")


@dataclass
class Result:
    """One setting on one seed: a prediction and a distribution for each query, and what it took."""

    setting: Setting
    seed: int
    predictions: list[int]
    probs: list[list[float]]
    gold: list[int]
    options: list[tuple[str, ...]]
    dropped: int = 0
    """Sets of demonstrations that had to be shortened to fit the context."""
    too_long: int = 0
    """Queries that did not fit and are not counted."""
    pairs: int = 0
    """Options scored."""
    asked: int = 0
    """Tokens, had every prompt of the pass been computed alone, and those computed: this cell's share."""
    computed: int = 0
    seconds: float = 0.0
    metrics: dict[str, Any] = field(default_factory=dict)


def statistics(predictions: Sequence[int], probs: Sequence[Sequence[float]], gold: Sequence[int]) -> dict[str, Any]:
    """Accuracy with Wilson's interval, macro-F1 with a bootstrap interval, calibration error, mean entropy.

    Indices of options; probs [N][L].
    """
    n = len(gold)
    right = [int(p == g) for p, g in zip(predictions, gold, strict=True)]
    f1 = macro_f1(predictions, gold)
    rng = np.random.default_rng(0)
    p, g = np.array(predictions), np.array(gold)
    resampled = [macro_f1(p[i], g[i]) for i in rng.integers(0, n, (200, n))] if n else [0.0]
    top = [max(row) for row in probs]
    return {
        "n": n, "accuracy": sum(right) / max(1, n), "accuracy_interval": list(wilson(sum(right), n)), "macro_f1": f1,
        "macro_f1_interval": np.percentile(resampled, [2.5, 97.5]).tolist(),
        "ece": calibration_error(top, right) if n else 0.0,
        "entropy": float(np.mean([-sum(x * np.log(max(x, 1e-300)) for x in row) for row in probs])) if n else 0.0,
    }  # fmt: skip


def macro_f1(predictions: Sequence[int] | np.ndarray, gold: Sequence[int] | np.ndarray) -> float:
    """Mean F1 over the labels that occur in the gold answers or the predictions."""
    p, g = np.asarray(predictions), np.asarray(gold)
    scores = []
    for label in np.union1d(p, g):
        hit = ((p == label) & (g == label)).sum()
        scores.append(2 * hit / max(1, (p == label).sum() + (g == label).sum()))
    return float(np.mean(scores)) if scores else 0.0


def pool_apart(task: Task, queries: Sequence[Example], limit: int, shots: int) -> list[Example]:
    """At most `limit` (0: all) training examples that are no query; DataError where they are fewer than `shots`."""
    asked = {q.text for q in queries}
    pool = subsample([e for e in task.examples("train") if e.text not in asked], limit, 1)
    if len(pool) < shots:
        raise DataError(f"task {task.name}: {len(pool)} training examples and shots={shots}; ask for fewer")
    return pool


@dataclass(frozen=True)
class Bench:
    """A task's data and the engine: what all cells of a sweep share."""

    engine: Any
    manual: Format
    minimal: Format
    pool: Sequence[Example]
    queries: Sequence[Example]
    corpus: Corpus | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Selector -> its parameters."""

    def form(self, setting: Setting) -> Format:
        """The format of a setting, with its instruction."""
        base = self.manual if setting.format == "manual" else self.minimal
        return base.model_copy(update={"instruction": setting.instruction}) if setting.instruction else base

    def prompter(self, setting: Setting) -> Prompter:
        """What renders the prompts of a setting."""
        direction: Any = "channel" if setting.score == "channel" else "direct"
        demos: Any = setting.demos
        parts, read = condition(setting.condition).parts, reading(self.engine, setting)
        return Prompter(self.form(setting), direction, parts, setting.chat, read, demos)


def reading(engine: Any, setting: Setting) -> Read:
    """Where a setting's answers are read. "auto": by a masked LM at masks, by T5 at its sentinel, else behind the text.

    ConfigError where a model has no such place.
    """
    able: Read = getattr(engine, "gap", None) or "continuation"  # a server fills no gaps
    wanted = setting.read
    if wanted == "auto":
        return able if setting.score == "direct" and not setting.chat else "continuation"
    if wanted not in (able, "continuation"):
        needs = {"mask": "a masked LM", "sentinel": "an encoder-decoder with sentinels (<extra_id_0>)"}[wanted]
        raise ConfigError(f"read={wanted} needs {needs}; of this model read={able}")
    return cast(Read, wanted)


def evaluate(bench: Bench, settings: Sequence[Setting], seed: int) -> list[Result]:
    """One Result for each setting. Cells that differ in norm alone share one scoring, those that differ in what comes
    after selection and order share these."""
    started, before = time.perf_counter(), tokens_of(bench.engine)
    jobs: dict[Setting, tuple[Job, int]] = {}
    chosen: dict[Setting, list[Set]] = {}
    for setting in settings:
        key = replace(setting, norm="sum")
        if key not in jobs:
            jobs[key] = _job(bench, key, seed, chosen)
    found = dict(zip(jobs, score_jobs(bench.engine, [job for job, _ in jobs.values()]), strict=True))
    out = [_result(bench, s, seed, *jobs[key], found[key]) for s in settings for key in [replace(s, norm="sum")]]
    tokens = [now - then for now, then in zip(tokens_of(bench.engine), before)]
    spent, pairs = time.perf_counter() - started, sum(result.pairs for result in out)
    for result in out:  # what was shared between cells cannot be told apart: each has its share
        share = result.pairs / max(1, pairs)
        result.asked, result.computed = (round(n * share) for n in tokens)
        result.seconds = spent * share
    return out


def tokens_of(engine: Any) -> tuple[int, int]:
    """(asked, computed) of an engine so far; zeros for a server, which does not tell."""
    counts = getattr(engine, "counts", None)
    return (counts.asked, counts.computed) if counts is not None else (0, 0)


def demonstrations(
    bench: Bench, setting: Setting, seed: int, chosen: dict[Setting, list[Set]] | None = None
) -> list[Set]:
    """The demonstrations of each query: selected, ordered, and changed by the condition.

    chosen: what was selected and ordered before on this seed; added to.
    """
    if setting.shots == 0:
        return [()] * len(bench.queries)
    kept = chosen if chosen is not None else {}
    # of a setting these alone decide: what is scored how, and the condition, come later
    key = Setting(
        setting.shots, setting.select, setting.order, format=setting.format, instruction=setting.instruction,
        read=setting.read, demos=setting.demos,
    )  # fmt: skip
    if key not in kept:
        kept[key] = _arranged(bench, key, seed)
    sets = kept[key]
    if condition(setting.condition).per_query:
        return [
            tuple(changed(setting.condition, demos, seed, i, query, bench.corpus))
            for i, (demos, query) in enumerate(zip(sets, bench.queries))
        ]
    done = {d: tuple(changed(setting.condition, d, seed, i)) for i, d in enumerate(dict.fromkeys(sets))}
    return [done[demos] for demos in sets]


def _arranged(bench: Bench, setting: Setting, seed: int) -> list[Set]:
    """The demonstrations of each query, selected and ordered."""
    form = bench.form(setting)
    context = SelectionContext(bench.engine, form, scorer(bench.engine, bench.prompter(setting)))
    name, more = _selector(setting.select)
    context = replace(context, options={**more, **bench.options.get(name, {})})
    picked = SELECTORS[name](bench.pool, bench.queries, setting.shots, context, seed)
    chosen = [tuple(demos) for demos in shown(bench.pool, picked)]
    rule = order_rule(setting.order)
    tools = OrderTools(seed, 1, 24, bench.engine, form, context.scorer)
    table = {demos: tuple(rule(demos, tools)[0].of(demos)) for demos in dict.fromkeys(chosen)}
    return [table[demos] for demos in chosen]


def _selector(name: str) -> tuple[str, dict[str, Any]]:
    """(selector, its options) of a name of `select=`; ConfigError lists the names."""
    if name in NEAREST:
        return "knn", {"by": name}
    if name == "balanced":
        return "random", {"balanced": True}
    if name not in SELECTORS:
        raise ConfigError(f"select={name!r}; one of {', '.join((*SELECTORS, *NEAREST, 'balanced'))}")
    return name, {}


def _job(bench: Bench, setting: Setting, seed: int, chosen: dict[Setting, list[Set]]) -> tuple[Job, int]:
    """The scoring of a setting and its number of queries; content-free queries stand behind them."""
    per_query = demonstrations(bench, setting, seed, chosen)
    sets = list(dict.fromkeys(per_query))
    number = {demos: i for i, demos in enumerate(sets)}
    queries = [changed_query(setting.condition, q, seed) for q in bench.queries]
    which = [(number[demos], q) for q, demos in enumerate(per_query)]
    count = len(queries)
    if setting.calibrate == "contextual":
        for key in dict.fromkeys((s, queries[q].options) for s, q in which):
            model = next(q for q in queries if q.options == key[1])
            for free in content_free(model):
                which.append((key[0], len(queries)))
                queries.append(free)
    return Job(bench.prompter(setting), sets, queries, which, setting.score == "perplexity"), count


def _result(bench: Bench, setting: Setting, seed: int, job: Job, count: int, scores: Scores) -> Result:
    baseline = None
    if setting.norm in ("pmi", "pmi_empty"):
        baseline = unconditional(bench.engine, job.prompter, job.queries, setting.norm == "pmi_empty")
        baseline = [baseline[q] for _, q in job.which]
    values = normalised(scores, "token" if job.whole else setting.norm, baseline)  # type: ignore[arg-type]
    gone = set(scores.too_long)
    kept = [q for q in range(count) if q not in gone]
    if not kept:
        raise DataError("no input fits the model's context; choose a model with a longer one, or shorter inputs")
    probs = {q: probabilities(values[q]) for q in kept}
    if setting.calibrate == "contextual":
        bias = _bias(job, values, count)
        probs = {q: calibrate(p, bias[job.which[q][0], job.queries[q].options]) for q, p in probs.items()}
    predictions = [int(probs[q].argmax()) for q in kept]
    gold = [job.queries[q].gold for q in kept]
    result = Result(
        setting, seed, predictions, [probs[q].tolist() for q in kept], gold, [job.queries[q].options for q in kept],
        dropped=len(scores.dropped), too_long=len(gone), pairs=sum(len(row) for row in scores.logprob),
    )  # fmt: skip
    result.metrics = statistics(predictions, result.probs, gold)
    return result


def _bias(job: Job, values: Sequence[np.ndarray], count: int) -> dict[tuple[int, tuple[str, ...]], np.ndarray]:
    """(set, options) -> mean label probabilities of the content-free inputs."""
    found: dict[tuple[int, tuple[str, ...]], list[np.ndarray]] = {}
    for (s, q), value in zip(job.which[count:], values[count:], strict=True):
        if len(value):
            found.setdefault((s, job.queries[q].options), []).append(probabilities(value))
    return {key: np.mean(rows, axis=0) for key, rows in found.items()}
