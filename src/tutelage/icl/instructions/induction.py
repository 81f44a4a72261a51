"""Instruction induction (Honovich et al. 2022, arXiv 2205.10782): greedy proposals, and its tasks' files."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.core.errors import DataError
from tutelage.engine.requests import SamplingParams
from tutelage.icl.instructions.judges import Judge, execution_judge, judge_all
from tutelage.icl.instructions.metrics import Metric, metric
from tutelage.icl.instructions.prompts import MetaPrompts, filled
from tutelage.icl.instructions.proposals import GREEDY, sample, subsets
from tutelage.icl.instructions.ranked import Pair, Ranked

METRICS: Mapping[str, str] = {
    "common_concept": "f1",
    "informal_to_formal": "f1",
    "orthography_starts_with": "exact-set",
    "taxonomy_animal": "exact-set",
    "synonyms": "contains",
}
"""Metric by task; "em" for the others."""


@dataclass(frozen=True)
class Induction:
    """Instructions that a model read out of examples, and how well they work."""

    ranked: list[Ranked]
    accuracy: float
    """Execution accuracy: the mean over instructions, each as often as it was written."""


def induction_prompts(
    pairs: Sequence[Pair], count: int = 100, demonstrations: int = 5, seed: int = 0, prompts: MetaPrompts | None = None
) -> list[str]:
    """``count`` prompts that each show random pairs and ask for their instruction, in our words."""
    templates = prompts or MetaPrompts()
    sets = subsets(pairs, count, demonstrations, seed)
    return [filled(templates.induction, demonstrations=templates.demonstrations(chosen)) for chosen in sets]


def induce(
    engine: Any,
    asked: Sequence[str],
    held_out: Sequence[Pair],
    measure: Metric | None = None,
    params: SamplingParams = GREEDY,
    prompts: MetaPrompts | None = None,
    chat: bool = False,
    judge: Judge | None = None,
) -> Induction:
    """What the model writes after the prompts ``asked``, grouped, and carried out on the ``held_out`` pairs.

    Two generate calls. measure: exact match if None. judge: another measure, or another engine's.
    """
    templates = prompts or MetaPrompts()
    found = sample(engine, asked, params, "induction", chat)
    how = judge or execution_judge(engine, measure or metric("em"), templates.context, chat=chat)
    ranked = judge_all(how, found, held_out)
    return Induction(ranked, float(np.average([r.score for r in ranked], weights=[r.times for r in ranked])))


def read_pairs(folder: str | Path, task: str, split: str = "execute", seed: int = 0) -> list[Pair]:
    """Pairs of a task: split "induce" (to show) or "execute" (held out) of the data set's folder.

    cause_and_effect has no inputs of its own: cause and effect are put in an order drawn from ``seed``.
    """
    path, rows = _examples(folder, f"raw/{split}", task)
    rng = np.random.default_rng(seed)
    pairs = []
    for key, row in rows.items():
        try:
            pairs.append(_pair(task, row, bool(rng.random() < 0.5)))
        except (KeyError, TypeError, AttributeError) as problem:
            raise DataError(f"{path}: example {key}: no {problem}; expected an instruction-induction task") from None
    return pairs


def _pair(task: str, row: Mapping[str, Any], cause_first: bool) -> Pair:
    if task == "cause_and_effect":
        first, second = (row["cause"], row["effect"]) if cause_first else (row["effect"], row["cause"])
        return Pair(f"Sentence 1: {first} Sentence 2: {second}", (row["cause"],))
    if task == "common_concept":
        return Pair(", ".join(row["items"]), tuple(dict.fromkeys((row["concept"], *row["all_common_concepts"]))))
    others = row.get("other_rhymes") or row.get("possible_translations") or row.get("possible_outputs") or ()
    return Pair(row["input"], tuple(dict.fromkeys((row["output"], *others))))


def read_prompts(folder: str | Path, task: str) -> list[str]:
    """The data set's own induction prompts of a task (100 of 5 pairs each)."""
    return [row["input"] for row in _examples(folder, "induction_input", task)[1].values()]


def read_annotations(folder: str | Path, task: str) -> list[str]:
    """The instructions that people wrote for a task."""
    return list(_json(Path(folder) / "annotations" / f"{task}.json").get("annotations", []))


def _examples(folder: str | Path, under: str, task: str) -> tuple[Path, Mapping[str, Any]]:
    path = Path(folder) / under / f"{task}.json"
    rows = _json(path).get("examples")
    if not isinstance(rows, dict) or not rows:
        raise DataError(f"{path}: no 'examples'; expected a file of the instruction-induction data set")
    return path, rows


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        names = sorted(p.stem for p in path.parent.glob("*.json"))
        near = difflib.get_close_matches(path.stem, names, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"tasks there: {', '.join(names) or 'none'}"
        raise DataError(f"{path}: no such file; {hint}") from None
    except (OSError, ValueError) as problem:
        raise DataError(f"{path}: not readable as JSON: {problem}") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected a JSON object")
    return found
