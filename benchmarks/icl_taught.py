"""What demonstrations, their choice and order, and searched instructions do to a model that can learn in context.

    python benchmarks/icl_taught.py [--seed 0] [--quick]

The small real models at hand do not do SST-2, so on them nothing can be told apart. Here a model of a million
parameters is taught a small world of questions (icl_world.py, minutes on one core), and `tutelage icl` measures it on
sentences that it has not seen. One right demonstration tells it which of four questions is meant; so selectors and
orders are told apart on three tasks that mix two questions. Means are over tasks and sets of demonstrations (seeds),
with 95% intervals over these; --only names some of the sweeps.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import common
import icl_world as world

import tutelage
from tutelage.pipeline.stages import launch

OUT = common.WORK / "icl_taught"
CONDITIONS = [
    "gold", "random", "correct_50", "wrong", "permuted", "no_labels", "labels_only", "english_words",
    "english_words_gold",
]  # fmt: skip
QUICK = ["random", "bm25", "tfidf", "hidden", "dpp", "perplexity"]
SLOW = ["vote_k", "information", "mdl", "epr", "generated"]
"""Selectors that ask the model much. `balanced` is none: the tasks' examples have four of the eight answers."""
HAND = "decide whether {}"
"""A wording that is not among those which the model was taught."""
SWEEPS: dict[str, dict[str, Any]] = {
    "shots": {"shots": [0, 1, 2, 4, 7], "condition": ["gold", "random"]},
    "conditions": {"shots": 4, "condition": CONDITIONS, "score": ["direct", "channel"]},
    "shots_mixed": {"shots": [0, 1, 2, 4, 7]},
    "selectors": {"shots": 4, "select": QUICK},
    "orders": {"shots": 4, "order": ["given", "random", "global_entropy", "local_entropy"]},
    "directions": {"shots": 4, "select": "bm25", "order": ["nearest_first", "nearest_last"]},
    "instructions": {"shots": [0, 1], "instructions": ["none", "ape", "induction", "perplexity", "mutual_information"]},
    "slow_selectors": {"shots": 4, "select": SLOW},
}


def sweep(name: str, model: str, tasks: dict[str, str], seeds: int, limit: int) -> list[dict[str, Any]]:
    """Rows {setting, task, seed, accuracy, searched?} of one sweep, on every task."""
    rows: list[dict[str, Any]] = []
    one_by_one = name == "instructions"  # the hand-written instruction is each task's own
    clauses = {question.name: question.clause for question in world.QUESTIONS}
    for group in [[t] for t in tasks] if one_by_one else [list(tasks)]:
        words: dict[str, Any] = {"task": [tasks[t] for t in group], "model": model, "seeds": seeds, "limit": limit}
        if one_by_one:
            words["instruction"] = HAND.format(clauses[group[0]])
            words["search"] = {"candidates": 25, "examples": 30}
        if name == "slow_selectors":
            words["selection"] = {"epr": {"examples": 100, "candidates": 30}}
        out = OUT / "-".join([name, *(group if one_by_one else [])])
        path, _ = launch("icl", {**words, **SWEEPS[name], "out": str(out)})
        for line in (path / "results.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            keys = [k for k, v in SWEEPS[name].items() if isinstance(v, list)]
            kept = {"setting": {k: row["setting"][k] for k in keys}, "task": Path(row["task"]).stem}
            rows.append({**kept, **{k: row[k] for k in ("seed", "accuracy", "seconds", "searched") if k in row}})
    return rows


def means(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mean accuracy of each setting over tasks and seeds, with its interval."""
    out = []
    for setting in list(dict.fromkeys(json.dumps(row["setting"]) for row in rows)):
        mine = [row for row in rows if json.dumps(row["setting"]) == setting]
        middle, half = common.mean_interval([row["accuracy"] for row in mine])
        seconds = sum(row["seconds"] for row in mine)
        found = {"accuracy": round(middle, 4), "half": round(half, 4), "n": len(mine), "seconds": round(seconds, 2)}
        out.append({**json.loads(setting), **found})
    return out


def show(name: str, table: Sequence[dict[str, Any]]) -> None:
    for row in table:
        setting = " ".join(str(v) for k, v in row.items() if k not in ("accuracy", "half", "n", "seconds"))
        print(f"{name:15}{setting:34}{100 * row['accuracy']:6.1f} +- {100 * row['half']:4.1f}{row['seconds']:8.1f} s",
              flush=True)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--seeds", type=int, default=3, help="sets of demonstrations")
    parser.add_argument("--limit", type=int, default=100, help="test sentences of a task")
    parser.add_argument("--seed", type=int, default=0, help="of the model and its text")
    parser.add_argument("--model", help="the folder of a model taught before, instead of teaching one")
    parser.add_argument("--only", nargs="*", choices=list(SWEEPS), default=list(SWEEPS))
    parser.add_argument("--quick", action="store_true", help="small: does everything run")
    args = parser.parse_args(argv)
    if args.quick:
        args.steps, args.seeds, args.limit = 5, 1, 5
    if not args.model:
        shutil.rmtree(OUT, ignore_errors=True)  # taught anew: the text depends on the arguments
    model = args.model or str(world.teach(OUT / "taught", args.steps, args.seed))
    tasks = world.write_tasks(OUT, args.seed)
    facts = {key: getattr(args, key) for key in ("steps", "seeds", "limit", "seed")}
    row: dict[str, Any] = {**facts, "parameters": tutelage.load(model).model.num_parameters()}
    row |= {"machine": common.machine(), "sweeps": {}}
    for name in args.only:
        mixed = name not in ("shots", "conditions", "instructions")
        rows = sweep(name, model, {k: v for k, v in tasks.items() if ("-" in k) == mixed}, args.seeds, args.limit)
        table = means(rows)
        show(name, table)
        row["sweeps"][name] = table
        if name == "instructions":
            row["found"] = [{**r["setting"], "task": r["task"], "seed": r["seed"], **r["searched"]} for r in rows
                            if "searched" in r and r["setting"]["shots"] == 0]  # fmt: skip
        common.save("icl_taught" if args.seed == 0 else f"icl_taught_seed{args.seed}", row, args.quick)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
