"""In-context training measured: MetaICL direct and channel, and the self-supervised objectives, before and after.

    python benchmarks/metaicl.py BASE [--arms direct channel] [--seeds 0 1] [--quick]
    python benchmarks/metaicl.py MODEL --real DATA [--arms direct channel] [--seeds 0]

BASE is the run `pretrain` of recipes/metaicl.toml: the tasks are the embedded world's. With --real the folder DATA
holds the built-in tasks' files: topics, questions and tweets are trained on (self-supervised: --text), sentiment of
reviews and entailment are the targets. Results in results/metaicl.json and metaicl_real.json; what is finished is not
run again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import common

OUT = common.WORK / "metaicl"
OBJECTIVES = ("next_sentence", "masked_word", "last_phrase", "classification", "selfsupervised")
ARMS: dict[str, dict[str, Any]] = {
    "direct": {},
    "channel": {"channel": True},
    "multi-task": {"shots": 0},
    **{name: {"objective": name} for name in OBJECTIVES},
}
"""multi-task: the tasks without demonstrations, which is MetaICL's baseline."""
WORLD: dict[str, Any] = {
    "precision": "fp32", "eval_every": 0, "steps": 600, "batch_size": 64, "limit": 24,
    "optimizer": {"name": "muon", "lr": 2e-3, "muon_lr": 0.01},
}  # fmt: skip
WORLD_TEXT = {**WORLD, "steps": 150, "batch_size": 32, "format": "world"}
"""Text asks of itself in the form in which the world's tasks are measured. Its sequences are four times as long."""
REAL: dict[str, Any] = {
    "tasks": ["subj", "trec", "agnews", "dbpedia", "emotion", "irony", "stance_abortion", "stance_atheism",
              "stance_climate", "stance_feminist", "stance_hillary"],
    "targets": ["sst2", "cr", "mr", "rte", "cb"],
    "steps": 150, "batch_size": 16, "measured": [0, 4], "limit": 100, "seeds": 3, "precision": "fp32", "eval_every": 0,
    "examples": 2000,
}  # fmt: skip


def arm(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One arm's summary on one seed, without the tables of single tasks."""
    from tutelage.core.rundir import read_manifest
    from tutelage.pipeline.stages import launch, read_summary

    own = name in OBJECTIVES
    values: dict[str, Any] = {"model": args.model, "seed": seed, **ARMS[name]}
    if args.real:
        values = {**REAL, "data": args.real, **({"text": args.text, "format": "minimal"} if own else {}), **values}
    else:
        values = {**(WORLD_TEXT if own else WORLD), **values}
    values |= {"steps": args.steps} if args.steps else {}
    values |= {"steps": 2, "limit": 4, "target_tasks": 2, "measured": [2], "seeds": 1} if args.quick else {}
    folder = OUT / ("quick" if args.quick else "real" if args.real else "world") / f"{name}-{seed}"
    path, _ = launch("metaicl", {**values, "out": str(folder)})
    found = read_summary(path)
    tasks = found.pop("tasks")
    row = {"arm": name, "seed": seed, **found, "seconds": (read_manifest(path) or {})["seconds"]}
    return {**row, **({"tasks": tasks} if args.real else {})}


def show(row: dict[str, Any]) -> None:
    for line in row["groups"]:
        triples = ([line[f"{key}{end}"] for end in ("", "_low", "_high")] for key in ("before", "after", "gain"))
        cells = (f"{value:.3f} [{low:.2f}, {high:.2f}]" for value, low, high in triples)
        print(f"{row['arm']:16}{row['seed']:3}  {line['group']:34}{line['shots']:3}  {'  '.join(cells)}", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--real", metavar="DATA", help="folder with the built-in tasks' files")
    parser.add_argument("--text", default="schoolroom:demo", help="with --real: text of the self-supervised objectives")
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, help="instead of the arms' own")
    parser.add_argument("--quick", action="store_true", help="a few steps: proves only that it runs")
    args = parser.parse_args(argv)
    name = "metaicl_real" if args.real else "metaicl"
    before = common.RESULTS / f"{name}.json"
    rows = json.loads(before.read_text(encoding="utf-8"))["rows"] if before.exists() else []
    for seed in args.seeds:
        for one in args.arms:
            row = arm(one, seed, args)
            show(row)
            rows = [r for r in rows if (r["arm"], r["seed"]) != (one, seed)] + [row]
            common.save(name, {"model": Path(args.model).name, "machine": common.machine(), "rows": rows}, args.quick)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
