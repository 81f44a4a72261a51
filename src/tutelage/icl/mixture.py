"""Instruction mixtures: examples of many tasks under many templates, zero-shot, few-shot and with chains of thought.

How much of each data set: examples-proportional mixing (Raffel et al. 2020, section 3.5.2): a data set of n examples
weighs min(n, K). FLAN (Wei et al. 2021) takes K = 3000 of at most 30,000 examples and at most three of ten templates
turned around. How the rows are asked: the Flan collection (Longpre et al. 2023; flan/v2/run_example.py) has half of
its rows zero-shot, half with the answers listed, and 5% chains of thought.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Any

import numpy as np

from tutelage.core.errors import ConfigError, DataError
from tutelage.core.runtime import stream_seed
from tutelage.icl.examples import Example, subsample
from tutelage.icl.fitting import Fitting
from tutelage.icl.prompts import Format, Prompter, with_answer
from tutelage.icl.ready import data_set_of
from tutelage.icl.reasoning import read_problems
from tutelage.icl.reasoning.prompts import TRIGGERS
from tutelage.icl.tasks import Task

Row = dict[str, Any]


@dataclass(frozen=True)
class Wording:
    """One template with the examples that it is applied to."""

    name: str
    format: Format
    examples: tuple[Example, ...]
    final: bool = False
    """The template stands in the examples' text already: no list of answers is added, and nothing turned around."""
    turnable: bool = True


@dataclass(frozen=True)
class DataSet:
    """What a share of the mixture is given to: one data set under all its templates."""

    name: str
    cluster: str
    wordings: tuple[Wording, ...]

    @property
    def size(self) -> int:
        """Different examples."""
        return max(len(w.examples) for w in self.wordings)

    @property
    def reasoned(self) -> DataSet | None:
        """The same with those examples alone that have a chain of thought."""
        kept = [replace(w, examples=tuple(e for e in w.examples if e.rationale)) for w in self.wordings]
        kept = [w for w in kept if w.examples]
        return replace(self, wordings=tuple(kept)) if kept else None


@dataclass(frozen=True)
class Forms:
    """Shares of the rows, each 0..1, and how many demonstrations a few-shot row has at most."""

    few_shot: float
    shots: int
    options: float
    turned: float
    chain_of_thought: float


def data_set(task: Task, cap: int, seed: int) -> DataSet:
    """A task under its own format and its further templates, with at most `cap` training examples, drawn once.

    DataError for a task without examples, and for a template that names a field which the examples lack.
    """
    if task.problems and not task.train:
        raise ConfigError(f"task {task.name}: its file is a test; give a description with train=FILE and problems=true")
    if task.problems:
        examples = [_solved(p.text, p.shown_answer, p.rationale) for p in read_problems(task.train)]
    else:
        examples = task.examples("train")
    examples = subsample(examples, cap, seed)
    if not any(e.answer.strip() for e in examples):
        raise DataError(f"task {task.name}: no example has an answer; expected at least one")
    made, turnable = [], not (task.letters or task.problems)
    for number, form in enumerate((task.format, *task.templates)):
        made.append(Wording(f"{task.name}/{number}", form, tuple(examples), turnable=turnable))
        try:
            for direction in ("direct", "channel"):
                Prompter(form, direction).pair(examples[0], examples[0].answer)
        except DataError as error:
            raise DataError(f"task {task.name}: template {number} of {len(task.templates) + 1}: {error}") from None
    return DataSet(task.name, task.cluster or task.name, tuple(made))


def _solved(text: str, answer: str, rationale: str) -> Example:
    return Example({"text": text}, text, (), -1, answer, rationale)


def ready_sets(tasks: Sequence[Task], cap: int, seed: int) -> list[DataSet]:
    """Tasks with templates already applied (`ready.ready_tasks`), those of one data set together."""
    groups: dict[tuple[str, str], list[Wording]] = {}
    for task in tasks:
        examples = tuple(subsample(task.examples("train"), cap, seed))
        wording = Wording(task.name, task.format, examples, final=True, turnable=False)
        groups.setdefault(data_set_of(task.name), []).append(wording)
    return [DataSet(name, cluster, tuple(wordings)) for (name, cluster), wordings in groups.items()]


def chosen(sets: Sequence[DataSet], only: Sequence[str], without: Sequence[str]) -> list[DataSet]:
    """The templates whose own, data set's or cluster's name matches a pattern of `only` (empty: all) and none of
    `without`. ConfigError for a pattern that matches nothing, and where nothing is left."""
    used: set[str] = set()

    def matches(patterns: Sequence[str], d: DataSet, w: Wording) -> bool:
        hits = [p for p in patterns if any(fnmatch(name, p) for name in (w.name, d.name, d.cluster))]
        used.update(hits)
        return bool(hits)

    out = []
    for d in sets:
        outside = [matches(without, d, w) for w in d.wordings]
        inside = [not only or matches(only, d, w) for w in d.wordings]
        kept = tuple(w for w, yes, no in zip(d.wordings, inside, outside) if yes and not no)
        if kept:
            out.append(replace(d, wordings=kept))
    idle = [p for p in (*only, *without) if p not in used]
    if idle or not out:
        names = ", ".join(dict.fromkeys(name for d in sets for name in (d.cluster, d.name)))
        what = f"{idle[0]!r} matches no cluster, data set or template" if idle else "only and without leave nothing"
        raise ConfigError(f"{what}; clusters and data sets: {names}")
    return out


def learnable(sets: Sequence[DataSet], fitting: Fitting) -> tuple[list[DataSet], int]:
    """The data sets without the examples whose answer is empty, or too long to be learned (with its chain of thought,
    if it has one), and how many those were. DataError where nothing is left."""
    out, gone = [], 0
    for d in sets:
        kept = []
        for w in d.wordings:
            answers = [_reasoning(e).answer if e.rationale else e.answer for e in w.examples]
            fine = tuple(e for e, a in zip(w.examples, answers) if e.answer.strip() and fitting.takes(a))
            gone += len(w.examples) - len(fine)
            kept += [replace(w, examples=fine)] if fine else []
        out += [replace(d, wordings=tuple(kept))] if kept else []
    if not out:
        raise DataError(f"no answer is within half of max_length={fitting.max_length}; raise max_length")
    return out, gone


def weights(sizes: Sequence[int], rate: int) -> list[float]:
    """Examples-proportional mixing: the share of each data set, min(n, K) over their sum."""
    capped = [min(n, rate) for n in sizes]
    return [n / sum(capped) for n in capped]


def allotted(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers that sum to `total`, each within one of its exact share (largest remainders first)."""
    exact = [total * share for share in shares]
    out = [int(value) for value in exact]
    rest = sorted(range(len(out)), key=lambda i: (out[i] - exact[i], i))[: total - sum(out)]
    return [n + (i in rest) for i, n in enumerate(out)]


@dataclass(frozen=True)
class Mixture:
    """`rows` rows of the data sets; row i is the same whatever was made before it."""

    sets: Sequence[DataSet]
    rows: int
    rate: int
    forms: Forms
    fitting: Fitting
    seed: int

    def plan(self) -> list[tuple[DataSet, int, bool]]:
        """(data set, which of its rows, with a chain of thought) of every row, shuffled."""
        reasoned = [d for d in (s.reasoned for s in self.sets) if d]
        chains = round(self.rows * self.forms.chain_of_thought)
        if chains and not reasoned:
            raise ConfigError(f"chain_of_thought={self.forms.chain_of_thought}: no task has a chain of thought; give "
                              "0, or a task with rationale= or problems=true")  # fmt: skip
        out: list[tuple[DataSet, int, bool]] = []
        for part, total, chain in ((self.sets, self.rows - chains, False), (reasoned, chains, True)):
            counts = allotted(total, weights([d.size for d in part], self.rate)) if part else []
            out += [(d, i, chain) for d, count in zip(part, counts) for i in range(count)]
        order = np.random.default_rng(stream_seed(self.seed, "mixture")).permutation(len(out))
        return [out[i] for i in order]

    def made(self, start: int = 0) -> Iterator[Row]:
        """The rows from number `start` on."""
        for d, number, chain in self.plan()[start:]:
            yield self.row(d, number, chain)

    def row(self, d: DataSet, number: int, chain: bool) -> Row:
        """{"prompt", "completion"} and the columns that say how it was made.

        The examples of a data set come all once, under a template drawn for each, before any comes again.
        """
        rng = np.random.default_rng(stream_seed(self.seed, "row", d.name, number, chain))
        wording = d.wordings[int(rng.integers(len(d.wordings)))]
        epoch, at = divmod(number, len(wording.examples))
        order = np.random.default_rng(stream_seed(self.seed, "order", d.name, len(wording.examples), epoch))
        example = wording.examples[int(order.permutation(len(wording.examples))[at])]
        draws = rng.random(3)
        turned = wording.turnable and not chain and bool(draws[0] < self.forms.turned)
        turned = turned and self.fitting.takes(example.text)
        listed = bool(draws[1] < self.forms.options) and bool(example.options)
        listed = listed and not (wording.final or turned or chain)
        form = _shaped(wording.format, listed, chain)
        shown = self._demonstrations(wording, example, rng) if draws[2] < self.forms.few_shot else []
        if chain:
            shown, example = [_reasoning(e) for e in shown], _reasoning(example)
        prompter = Prompter(form, "channel" if turned else "direct")
        fitted = self.fitting.fit(prompter, shown, example)
        kind = ("few_shot" if fitted.shots else "zero_shot") + ("_cot" if chain else "")
        return {
            "prompt": fitted.prompt, "completion": fitted.completion, "task": d.name, "cluster": d.cluster,
            "template": wording.name, "form": kind, "turned": turned, "options": listed, "shots": fitted.shots,
            "dropped_shots": len(shown) - fitted.shots, "cut": fitted.cut,
        }  # fmt: skip

    def _demonstrations(self, wording: Wording, example: Example, rng: np.random.Generator) -> list[Example]:
        """One to `shots` other examples of the same template."""
        wanted = int(rng.integers(1, self.forms.shots + 1))
        drawn = rng.permutation(len(wording.examples))[: wanted + 1]
        return [wording.examples[i] for i in drawn if wording.examples[i].text != example.text][:wanted]


def _shaped(form: Format, listed: bool, chain: bool) -> Format:
    """The format with the list of answers, or with what asks for a chain of thought, behind the input."""
    more = "\n{options}" if listed and "{options}" not in form.input else f"\n{TRIGGERS[0].text}" if chain else ""
    return form.model_copy(update={"input": form.input + more}) if more else form


def _reasoning(e: Example) -> Example:
    return with_answer(e, f"{e.rationale} The answer is {e.answer}.")


def counted(rows: Iterator[Mapping[str, Any]]) -> dict[str, Any]:
    """How many rows of each task, cluster and form there are, and what had to be shortened."""
    out: dict[str, Any] = {"rows": 0, "forms": {}, "clusters": {}, "tasks": {}, "templates": {}}
    sums = dict.fromkeys(("turned", "options", "cut", "dropped_shots"), 0)
    for row in rows:
        out["rows"] += 1
        for key, table in (("form", "forms"), ("cluster", "clusters"), ("task", "tasks"), ("template", "templates")):
            out[table][row[key]] = out[table].get(row[key], 0) + 1
        for key in sums:
            sums[key] += int(row[key])
    tables = {key: dict(sorted(value.items())) if isinstance(value, dict) else value for key, value in out.items()}
    return tables | sums
