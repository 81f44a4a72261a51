"""Held-out tasks: how often the right label ranks first, and what the right answer costs, task by task.

Many templates ask about the same examples, so intervals resample examples (with all their templates), not rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tutelage.core.stats import bootstrap_weights, ratio_interval
from tutelage.icl.examples import Example, subsample
from tutelage.icl.fitting import Fitting
from tutelage.icl.prompts import Prompter
from tutelage.icl.ready import data_set_of
from tutelage.icl.scoring import Job, score_jobs
from tutelage.icl.tasks import Task

Row = dict[str, Any]


def measure(engine: Any, tasks: Sequence[Task], fitting: Fitting, limit: int, chat: bool, seed: int = 0) -> list[Row]:
    """Zero-shot, a row for each of at most `limit` examples of each task with templates already applied.

    {"cluster", "template", "case": the example behind the template, "nats" and "tokens" of the right answer}, and where
    the task has labels "right" (whether the right one has the highest summed log-prob, 0 or 1), "right_by_token" (the
    same of means over tokens), "chance", "majority" (whether it is the task's commonest label). Templates of one data
    set are asked about the same examples. Inputs too long lose their middle; an answer of more than half of the room is
    left out, and so is what a chat template makes too long for the model.
    """
    prompter = {task.name: Prompter(task.format, chat=chat) for task in tasks}
    cases = [_cases(task, fitting, limit, seed) for task in tasks]
    jobs = []
    for task, mine in zip(tasks, cases, strict=True):
        queries = [_asked(prompter[task.name], fitting, e) for _, _, e in mine]
        jobs.append(Job(prompter[task.name], [()], queries, [(0, q) for q in range(len(queries))]))
    rows = []
    for task, mine, job, found in zip(tasks, cases, jobs, score_jobs(engine, jobs), strict=True):
        scored = zip(mine, job.queries, found.logprob, found.tokens, strict=True)
        for (case, usual, _), query, logprobs, tokens in scored:
            if not len(logprobs):
                continue
            row = {"cluster": task.cluster, "template": task.name, "case": case,
                   "nats": -float(logprobs[query.gold]), "tokens": int(tokens[query.gold])}  # fmt: skip
            if task.labels:
                row["right"] = int(logprobs.argmax() == query.gold)
                row["right_by_token"] = int((logprobs / tokens).argmax() == query.gold)
                row |= {"chance": 1 / len(logprobs), "majority": int(usual)}
            rows.append(row)
    return rows


def _cases(task: Task, fitting: Fitting, limit: int, seed: int) -> list[tuple[str, bool, Example]]:
    """(the example behind the template, whether its label is the commonest, the example)."""
    every = task.examples("train")
    common = Counter(e.gold for e in every).most_common(1)[0][0]
    name = f"{data_set_of(task.name)[0]}/{len(every)}"  # a template of some of the examples numbers others
    drawn = subsample(list(enumerate(every)), limit, seed)
    return [(f"{name}/{n}", e.gold == common, e) for n, e in drawn if e.answer and fitting.takes(e.answer)]


def _asked(prompter: Prompter, fitting: Fitting, e: Example) -> Example:
    """The example with an input that fits, and with its answer as the only option where there are no labels."""
    options = e.options or (e.answer,)
    text = fitting.fit(replace(prompter, chat=False), [], replace(e, answer=max(options, key=len))).prompt
    return replace(e, text=text, fields={"text": text}, options=options, gold=max(e.gold, 0))


def summarised(by_seed: Sequence[Iterable[Mapping[str, Any]]], samples: int = 1000) -> dict[str, Row]:
    """Cluster -> accuracy and loss (nats a token of the right answer), each with a 95% interval, chance and majority.

    by_seed: the rows of `measure` of each seed, of the same examples. The interval adds what the seeds move to what the
    examples move: 1.96 sqrt(s^2 / S + e^2), with e half of the bootstrap interval over examples divided by 1.96.
    """
    seeds = [list(rows) for rows in by_seed]
    out: dict[str, Row] = {}
    for cluster in dict.fromkeys(row["cluster"] for rows in seeds for row in rows):
        mine = [[row for row in rows if row["cluster"] == cluster] for rows in seeds]
        ranked = [[row for row in rows if "right" in row] for rows in mine]
        found: Row = {"templates": len({row["template"] for row in mine[0]}), "rows": len(mine[0])}
        if any(ranked):
            found |= _interval("accuracy", ranked, "right", None, samples)
            found |= _interval("accuracy_by_token", ranked, "right_by_token", None, samples)
            found["chance"], found["majority"] = (_mean(ranked[0], key) for key in ("chance", "majority"))
            found["ranked_templates"] = len({row["template"] for row in ranked[0]})
        out[cluster] = found | _interval("loss", mine, "nats", "tokens", samples)
    return out


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)


def _interval(
    name: str, seeds: Sequence[Sequence[Mapping[str, Any]]], top: str, bottom: str | None, samples: int
) -> Row:
    """`name`, `name`_low and `name`_high of sum(top) / sum(bottom) (None: of the rows), a mean over the seeds."""
    values = [sum(r[top] for r in rows) / sum(r[bottom] if bottom else 1 for r in rows) for rows in seeds]
    mean = sum(values) / len(values)
    tops: Counter[str] = Counter()
    bottoms: Counter[str] = Counter()
    for rows in seeds:
        for row in rows:
            tops[row["case"]] += row[top]
            bottoms[row["case"]] += row[bottom] if bottom else 1
    cases = sorted(bottoms)
    low, high = ratio_interval(
        [tops[c] for c in cases], [bottoms[c] for c in cases], bootstrap_weights(len(cases), samples)
    )[1:]
    spread = sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1) / len(values)
    half = ((1.96**2) * spread + ((high - low) / 2) ** 2) ** 0.5
    return {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half}
