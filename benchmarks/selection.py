"""How often the chosen demonstrations share their query's label, and how long choosing takes.

    TUTELAGE_DATA=... python benchmarks/selection.py
    TUTELAGE_DATA=... python benchmarks/selection.py --task trec --queries 500 --only random knn.bm25 knn.hidden

A look at selection alone, for which no able model is needed; accuracy behind the demonstrations is `tutelage icl`'s to
measure. No query stands in the pool. Labels are not everything: `perplexity`, `information` and `mdl` do not look for
kin at all.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import common

import tutelage
from tutelage.icl.builtin import builtin_task
from tutelage.icl.prompts import Prompter
from tutelage.icl.scoring import scorer
from tutelage.icl.selection import SELECTORS, SelectionContext, demonstrations

CASES: dict[str, dict[str, Any]] = {
    "random": {"per_query": True},
    "knn.bm25": {},
    "knn.tfidf": {"by": "tfidf"},
    "knn.hidden": {"by": "hidden"},
    "knn.hidden.euclidean": {"by": "hidden", "similarity": "euclidean"},
    "dpp.tfidf": {},
    "dpp.hidden": {"by": "hidden"},
    "vote_k.fast": {"confidence": False},
    "vote_k": {},
    "perplexity": {},
    "information": {},
    "mdl": {},
    "mdl.shared": {"shared": True},
    "epr.tfidf": {},
    "epr.tfidf.both": {"candidates_by": "both"},
    "epr.hidden": {"encoder": "hidden"},
}
"""Name (the selector's first) -> its options."""


def main() -> None:
    """Print one row a case and keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--model", default=str(Path(os.environ.get("TUTELAGE_DATA", "")) / "weights/stories260K/hf"))
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=list(CASES), default=list(CASES))
    args = parser.parse_args()
    task, engine = builtin_task(args.task), tutelage.load(args.model)
    pool, rest = task.examples("train"), task.examples("test")
    held = {e.text for e in pool}
    rest = [e for e in rest if e.text not in held]
    queries = [rest[i] for i in sorted(np.random.default_rng(0).permutation(len(rest))[: args.queries])]
    print(f"{args.task}: {len(pool)} in the pool, {len(queries)} queries, {args.shots} shots, {args.seeds} seeds")
    row: dict[str, Any] = {**vars(args), "pool": len(pool), "asked": len(queries), "machine": common.machine()}
    row["model"] = "/".join(Path(args.model).parts[-2:])  # no path of this machine in a committed file
    given = SelectionContext(engine, task.format, scorer(engine, Prompter(task.format)))
    for name in args.only:
        shares, seconds = [], []
        for seed in range(args.seeds):
            context = SelectionContext(given.engine, given.format, given.scorer, CASES[name])
            began = time.perf_counter()
            chosen = SELECTORS[name.split(".")[0]](pool, queries, args.shots, context, seed)
            seconds.append(time.perf_counter() - began)
            for query, shown in zip(queries, demonstrations(pool, chosen)):
                shares.append(float(np.mean([e.gold == query.gold for e in shown])))
        middle, half = common.mean_interval(shares)
        row[name] = {"same_label": middle, "half": half, "seconds": float(np.mean(seconds))}
        print(f"{name:22s} same label {middle:.3f} +- {half:.3f}   {np.mean(seconds):7.2f} s", flush=True)
    common.save(f"selection_{args.task}", row, quick=False)


if __name__ == "__main__":
    main()
