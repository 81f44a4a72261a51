"""In-context learning on a task: one setting or a sweep of them, several seeds, with intervals, table and plot."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import Field

from tutelage.core.atomic import unwritable, write_atomic
from tutelage.core.config import StageConfig
from tutelage.core.errors import ConfigError
from tutelage.core.progress import Progress
from tutelage.core.rundir import RunDir, read_jsonl_tolerant
from tutelage.core.stats import seeds_interval
from tutelage.engine import load
from tutelage.icl.evaluate import Bench, Result, Setting, evaluate, pool_apart, tokens_of
from tutelage.icl.examples import subsample
from tutelage.icl.instructions.search import FROM_PAIRS, InstructionSearch, check_search, search_instructions
from tutelage.icl.instructions.search import table as candidates
from tutelage.icl.open import evaluate_open, evaluate_reasoning
from tutelage.icl.perturb import Corpus
from tutelage.icl.reasoning import METHODS
from tutelage.icl.tasks import Task, load_task, named_files
from tutelage.report.icl import draw_sweep
from tutelage.text.corpus import read_texts

T = TypeVar("T")
Searched = dict[str, dict[str, Any]]
"""_sought(cell) -> the method, its candidates best first, and what the search took."""
SWEPT = (
    "shots", "select", "order", "score", "norm", "calibrate", "condition", "format", "instruction", "instructions",
    "chat", "method", "read", "demos",
)  # fmt: skip


class IclConfig(StageConfig):
    task: str | list[str]
    """A built-in task (sst2, agnews, mmlu:SUBJECT, gsm8k ...) or a description (task.toml)."""
    model: str
    """Model folder, run directory, hub id, or an OpenAI-compatible server's http://.../v1."""
    data: str | None = None
    """Folder with the built-in task's files (default: $TUTELAGE_DATA), or where a description's lie."""
    served: str | None = None
    """The model's name on a server."""
    method: str | list[str] = "score"
    """score (options by log-prob; open answers generated) | chain_of_thought | zero_shot_cot | self_consistency ..."""
    shots: int | list[int] = 4
    """Demonstrations; 0 is zero-shot."""
    select: str | list[str] = "random"
    """How demonstrations are chosen: random, balanced, fixed, bm25, tfidf, hidden, dpp, vote_k, mdl, epr ..."""
    order: str | list[str] = "given"
    """given | nearest_first | nearest_last | random | global_entropy | local_entropy"""
    score: str | list[str] = "direct"
    """direct: P(answer | input); channel: P(input | answer); perplexity: of the whole."""
    norm: str | list[str] = "sum"
    """sum | token | byte (length-normalised) | pmi | pmi_empty (less the option's own log-prob)"""
    calibrate: str | list[str] = "none"
    """none | contextual (divide by the mean prediction for N/A, empty and [MASK])"""
    condition: str | list[str] = "gold"
    """Labels or inputs of demonstrations: gold, random, correct_75 ... correct_0, permuted, no_labels, labels_only,
    ood_inputs, english_words ..."""
    format: str | list[str] = "manual"
    """manual (the task's template) | minimal (input, newline, answer)"""
    instruction: str | list[str] = ""
    """Text in front of everything; {text} is not known there."""
    instructions: str | list[str] = "none"
    """An instruction that the model finds on training examples, in place of `instruction`: none | ape | induction |
    perplexity | mutual_information (these two choose among wordings of `instruction` or search.seeds)."""
    search: InstructionSearch = InstructionSearch()
    """How much `instructions` may try, e.g. search.candidates=250 search.examples=100."""
    proposer: str | None = None
    """Another model that writes the candidates of `instructions`; `model` judges them."""
    chat: bool | list[bool] = False
    """Prompts through the model's chat template."""
    read: str | list[str] = "auto"
    """Where the answer is read: continuation (behind the text) | mask (a masked LM's [MASK]) | sentinel (T5's
    <extra_id_0>) | auto (as the model can)."""
    demos: str | list[str] = "before"
    """Where demonstrations stand, for read=mask and sentinel: before | after | around (half on each side of) the
    query."""
    seeds: int = Field(1, ge=1)
    """Sets of demonstrations: seed, seed + 1, ..."""
    limit: int = Field(0, ge=0)
    """At most this many test examples, drawn once; 0 is all."""
    pool: int = Field(0, ge=0)
    """At most this many training examples to choose from; 0 is all."""
    corpus: str | None = None
    """Sentences from elsewhere, one a line, for condition=ood_inputs."""
    selection: dict[str, dict[str, Any]] = {}
    """Parameters of selectors, e.g. selection.dpp.candidates=50."""
    reasoning: dict[str, Any] = {}
    """Parameters of a reasoning method, e.g. reasoning.paths=40 reasoning.temperature=0.7."""
    max_tokens: int = Field(64, ge=1)
    """Of generated answers."""
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    def named_files(self) -> dict[str, str]:
        """Descriptions and the data files that they or the built-in tasks name, the corpus, and the meta-prompts."""
        out = named_files(_listed(self.task), self.data)
        more = {"corpus": self.corpus, "search.prompts": self.search.prompts}
        return {**out, **{key: file for key, file in more.items() if file}}


def run(config: IclConfig, run: RunDir) -> dict[str, Any]:
    """Every cell on every seed into results.jsonl and predictions.jsonl; a table, a plot and summary.json.

    Searched instructions stand in results.jsonl with their scores, and all that were tried in instructions.jsonl.
    """
    cells = list(_cells(config))
    tasks = _listed(config.task)
    work = [(name, config.seed + i) for name in tasks for i in range(config.seeds)]
    rows = _resumed(run.path)
    left = [pair for pair in work if pair not in {(r["task"], r["seed"]) for r in rows}]
    engine = load(config.model, config.device, config.dtype, config.served) if left else None
    writer = load(config.proposer, config.device, config.dtype) if left and config.proposer else None
    benches = {name: _bench(config, engine, load_task(name, config.data), cells) for name in {name for name, _ in left}}
    with Progress(run.path.name, "passes", len(left)) as progress:
        for name, seed in progress.over(left):
            searched = _search(config, *benches[name], writer, cells, seed)
            rows += _write(run.path, rows, name, seed, _pass(config, *benches[name], cells, searched, seed), searched)
    table = [_aggregate(rows, name, cell) for name in tasks for cell in cells]
    figure = draw_sweep(run.path, table, [k for k in ("task", *SWEPT) if isinstance(getattr(config, k), list)])
    return {"cells": table, **({"figure": figure.name} if figure else {}), **_totals(table)}


def _listed(value: T | list[T]) -> list[T]:
    return value if isinstance(value, list) else [value]


def _cells(config: IclConfig) -> Iterator[dict[str, Any]]:
    """Every combination of the lists, as settings; combinations that mean nothing are refused."""
    for values in itertools.product(*(_listed(getattr(config, name)) for name in SWEPT)):
        cell = dict(zip(SWEPT, values, strict=True))
        if cell["method"] != "score" and cell["method"] not in METHODS:
            raise ConfigError(f"method={cell['method']!r}; one of score, {', '.join(METHODS)}")
        _setting(cell)  # checks
        if cell["method"] != "score" and (cell["read"], cell["demos"]) != ("auto", "before"):
            raise ConfigError(f"read and demos are for method=score: method={cell['method']} generates its answers")
        if cell["instructions"] != "none":
            check_search(cell["instructions"], config.search, cell["instruction"])
            if cell["method"] != "score":
                raise ConfigError(f"instructions={cell['instructions']} is for method=score: method={cell['method']} "
                                  "has prompts of its own")  # fmt: skip
        yield cell


def _setting(cell: dict[str, Any], searched: Searched | None = None) -> Setting:
    """The cell as evaluate() takes it, with the instruction that was found for it."""
    setting = Setting(**{k: v for k, v in cell.items() if k not in ("method", "instructions")})
    found = (searched or {}).get(_sought(cell))
    return replace(setting, instruction=found["candidates"][0]["instruction"]) if found else setting


def _sought(cell: dict[str, Any]) -> str:
    """What of a cell an instruction search depends on, as a key: cells that differ in the rest share one search."""
    parts = [cell[key] for key in ("instructions", "format", "chat")]
    return json.dumps([*parts, "" if cell["instructions"] in FROM_PAIRS else cell["instruction"]])


def _key(cell: dict[str, Any]) -> str:
    return json.dumps(cell, sort_keys=True)


def _resumed(path: Path) -> list[dict[str, Any]]:
    """The passes (a task on a seed) that an interrupted run has finished: results.jsonl is written whole after each.

    Predictions and candidates of a pass that was cut off are dropped, half a line included.
    """
    file = path / "results.jsonl"
    rows = list(read_jsonl_tolerant(file)) if file.exists() else []
    done = {(r["task"], r["seed"]) for r in rows}
    for more in (path / name for name in ("predictions.jsonl", "instructions.jsonl")):
        if more.exists():
            kept = [r for r in read_jsonl_tolerant(more) if (r["task"], r["seed"]) in done]
            write_atomic(more, _lines(kept))
    return rows


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _bench(config: IclConfig, engine: Any, task: Task, cells: Sequence[dict[str, Any]]) -> tuple[Task, Bench]:
    """The task with what its cells share; reasoning methods read their problems themselves."""
    plain = [c for c in cells if c["method"] == "score"]
    queries = subsample(task.examples("test"), config.limit) if plain else []
    corpus = Corpus(list(read_texts(config.corpus, "line"))) if config.corpus else None
    pool = _pool(config, task, queries, plain) if plain else []
    return task, Bench(engine, task.format, task.minimal, pool, queries, corpus, config.selection)


def _search(
    config: IclConfig, task: Task, bench: Bench, writer: Any, cells: Sequence[dict[str, Any]], seed: int
) -> Searched:
    """The instructions that the cells of one task and seed ask for, on training examples alone."""
    out: Searched = {}
    for cell in cells:
        key = _sought(cell)
        if cell["instructions"] == "none" or key in out:
            continue
        began, before = time.perf_counter(), tokens_of(bench.engine)
        form = bench.form(replace(_setting(cell), instruction=""))
        ranked = search_instructions(
            cell["instructions"], bench.engine, bench.pool, form, config.search, seed, cell["instruction"], writer,
            cell["chat"],
        )  # fmt: skip
        asked, computed = (now - then for now, then in zip(tokens_of(bench.engine), before))
        cost = {"asked": asked, "computed": computed, "seconds": time.perf_counter() - began}
        out[key] = {"method": cell["instructions"], "candidates": candidates(ranked), **cost}
    return out


def _pass(
    config: IclConfig, task: Task, bench: Bench, cells: Sequence[dict[str, Any]], searched: Searched, seed: int
) -> list[Any]:
    """(cell, row) of the cells of one task and seed; those that score options in one call of the engine."""
    out: list[Any] = []
    for cell in cells:
        if cell["method"] != "score":
            how = (cell["method"], cell["shots"], cell["chat"], config.limit, config.reasoning)
            out.append((cell, evaluate_reasoning(bench.engine, task, *how, seed)))
    plain = [c for c in cells if c["method"] == "score"]
    settings = [_setting(c, searched) for c in plain]
    if task.open:
        rows = [evaluate_open(bench, task, setting, config.max_tokens, seed) for setting in settings]
    else:
        rows = [_row(result) for result in evaluate(bench, settings, seed)]
    return out + list(zip(plain, rows, strict=True))


def _pool(config: IclConfig, task: Task, queries: Sequence[Any], cells: Sequence[dict[str, Any]]) -> list[Any]:
    """Training examples that are no query: for demonstrations, and to search instructions on."""
    searched = any(c["instructions"] != "none" for c in cells)
    if not searched and (not task.train or all(c["shots"] == 0 for c in cells)):
        return []
    return pool_apart(task, queries, config.pool, max(c["shots"] for c in cells))


def _row(result: Result) -> dict[str, Any]:
    return {
        **result.metrics, "dropped": result.dropped, "too_long": result.too_long, "asked": result.asked,
        "computed": result.computed, "seconds": result.seconds,
        "answers": [
            {"prediction": p, "gold": g, "probs": [round(x, 6) for x in row]}
            for p, g, row in zip(result.predictions, result.gold, result.probs, strict=True)
        ],
    }  # fmt: skip


def _write(
    path: Path, before: Sequence[dict[str, Any]], task: str, seed: int, found: Sequence[Any], searched: Searched
) -> list[Any]:
    """Write a pass's predictions and candidate instructions, then results.jsonl anew, which says that the pass is done.
    Returns its new rows."""
    heads = [{"task": task, "seed": seed, "setting": cell} for cell, _ in found]
    answers = [
        {**head, "number": number, **answer}
        for head, (_, row) in zip(heads, found)
        for number, answer in enumerate(row.pop("answers"))
    ]
    tried = [
        {"task": task, "seed": seed, "method": one["method"], **row}
        for one in searched.values()
        for row in one["candidates"]
    ]
    for name, lines in (("predictions.jsonl", answers), ("instructions.jsonl", tried)):
        if lines:
            _append(path / name, lines)
    new = [{**head, **_chosen(cell, searched), **row} for head, (cell, row) in zip(heads, found)]
    write_atomic(path / "results.jsonl", _lines([*before, *new]))
    return new


def _append(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(_lines(rows))
    except OSError as error:
        raise unwritable(path, error) from error


def _chosen(cell: dict[str, Any], searched: Searched) -> dict[str, Any]:
    """The instruction that a cell was given, its score on training examples, and what the (shared) search took."""
    one = searched.get(_sought(cell))
    if one is None:
        return {}
    cost = {key: one[key] for key in ("asked", "computed", "seconds")}
    return {"searched": {**one["candidates"][0], "candidates": len(one["candidates"]), **cost}}


def _aggregate(rows: Sequence[dict[str, Any]], task: str, cell: dict[str, Any]) -> dict[str, Any]:
    """One line of the table: the mean over seeds with its interval, the spread and the worst seed."""
    mine = [r for r in rows if r["task"] == task and _key(r["setting"]) == _key(cell)]
    values = [r["accuracy"] for r in mine]
    mean, low, high = seeds_interval(values, mine[0]["n"])
    kept: dict[str, Any] = {k: float(np.mean([r[k] for r in mine])) for k in ("macro_f1", "ece") if k in mine[0]}
    found = [{"seed": r["seed"], **{k: r["searched"][k] for k in ("instruction", "score", "candidates")}}
             for r in mine if "searched" in r]  # fmt: skip
    kept.update({"searched": found} if found else {})
    total = {k: sum(r.get(k, 0) for r in mine) for k in ("dropped", "too_long", "asked", "computed", "seconds")}
    return {
        "task": task, **cell, "n": mine[0]["n"], "seeds": len(mine), "accuracy": mean, "low": low, "high": high,
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0, "worst": min(values), **kept, **total,
    }  # fmt: skip


def _totals(table: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The accuracy of a single cell; of several the best, which was chosen on the test examples and says so."""
    best = max(table, key=lambda row: row["accuracy"])
    if len(table) == 1:
        return {"accuracy": best["accuracy"]}
    return {"best_on_test": {k: best[k] for k in ("task", *SWEPT, "accuracy")}}
