"""Few-shot answers that are generated rather than chosen, graded by the task's metric."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from tutelage.core.errors import ConfigError, DataError
from tutelage.core.stats import wilson
from tutelage.engine.requests import SamplingParams
from tutelage.icl.evaluate import Bench, Setting, demonstrations, tokens_of
from tutelage.icl.examples import Example, subsample
from tutelage.icl.perturb import changed_query
from tutelage.icl.reasoning import ReasonSettings, read_problems, reason
from tutelage.icl.tasks import Task
from tutelage.text.answers import exact_match, extract_answer, same_answer, same_mathematics, token_f1


def grade(metric: str, answer: str, gold: str) -> float:
    """How right a generated answer is, 0 to 1.

    exact and f1: SQuAD's; number: the answer's number (`extract_answer`) against the gold one's; math: by math-verify.
    """
    if metric == "exact":
        return exact_match(answer, gold)
    if metric == "f1":
        return token_f1(answer, gold)
    if metric == "number":
        meant = extract_answer(gold, "number")
        return float(meant is not None and same_answer(extract_answer(answer, "number"), meant, "number"))
    return float(same_mathematics(answer, gold))


def evaluate_open(bench: Bench, task: Task, setting: Setting, max_tokens: int, seed: int) -> dict[str, Any]:
    """Greedy answers behind each query's demonstrations: metrics, and the answers themselves."""
    if setting.score != "direct" or setting.calibrate != "none" or setting.norm != "sum":
        raise ConfigError(f"task {task.name}: its answers are generated, so score, norm and calibrate do not apply")
    if setting.read != "auto" or setting.demos != "before":
        raise ConfigError(f"task {task.name}: its answers are generated, so read and demos do not apply")
    started, before = time.perf_counter(), tokens_of(bench.engine)
    per_query = demonstrations(bench, setting, seed)
    queries = [changed_query(setting.condition, q, seed) for q in bench.queries]
    prompter = bench.prompter(setting)
    prompts = [prompter.prompt(demos, q) for demos, q in zip(per_query, queries, strict=True)]
    stop = (prompter.format.separator,) if prompter.format.separator.strip(" ") and not setting.chat else ()
    outputs = bench.engine.generate(prompts, SamplingParams(max_tokens=max_tokens, temperature=0.0, stop=stop))
    kept = [i for i, output in enumerate(outputs) if not output.error]
    if not kept:
        raise DataError(f"task {task.name}: no query could be answered; the first: {outputs[0].error}")
    values = [grade(task.metric, outputs[i].text, queries[i].answer) for i in kept]
    return {
        **_metrics(values), "too_long": len(queries) - len(kept), "dropped": 0,
        **dict(zip(("asked", "computed"), (n - b for n, b in zip(tokens_of(bench.engine), before)))),
        "seconds": time.perf_counter() - started,
        "answers": [_answer(outputs[i].text, queries[i], value) for i, value in zip(kept, values, strict=True)],
    }  # fmt: skip


def evaluate_reasoning(
    engine: Any, task: Task, method: str, shots: int, chat: bool, limit: int, options: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """A reasoning method (icl/reasoning) on the task's problems: metrics, the vote curve, and every answer.

    Demonstrations are the first training problems that have a chain of thought, else those of the package.
    options: keys of ReasonSettings; ConfigError for an unknown one.
    """
    known = {f.name for f in fields(ReasonSettings)} - {"exemplars", "shots", "chat", "pool"}
    if odd := sorted(set(options) - known):
        raise ConfigError(f"reasoning.{odd[0]}: unknown; there are {', '.join(sorted(known))}")
    problems = subsample(read_problems(task.test), limit)
    asked = {p.question for p in problems}
    train = read_problems(task.train, 50 + 4 * shots) if task.train and task.train != task.test else []
    shown = tuple(p for p in train if p.rationale and p.question not in asked)[:shots]
    settings = ReasonSettings(exemplars=shown, shots=shots, chat=chat, **options)
    found = reason(method, engine, problems, settings, seed)
    summary = found.summary()
    return {
        "n": len(problems), "accuracy": found.accuracy, "accuracy_interval": list(found.interval), "dropped": 0,
        "ece": summary["calibration_error"], "curve": summary["curve"], "notes": summary["notes"],
        "generated": found.generated_tokens, "too_long": summary["errors"], "unread": summary["unread"],
        "asked": found.prompt_tokens or 0, "computed": 0, "seconds": found.seconds,
        "answers": [
            {"prediction": r.prediction, "gold": r.problem.answer, "correct": r.correct, "texts": list(r.texts)}
            for r in found.results
        ],
    }  # fmt: skip


def _metrics(values: Sequence[float]) -> dict[str, Any]:
    n = len(values)
    mean = sum(values) / n
    return {"n": n, "accuracy": mean, "accuracy_interval": list(wilson(sum(values), n))}


def _answer(text: str, query: Example, value: float) -> dict[str, Any]:
    return {"prediction": text, "gold": query.answer, "correct": value}
