"""Every reasoning method on real problems with a model of the laptop's size: what docs/reasoning.md shows.

    TUTELAGE_DATA=... python benchmarks/reasoning.py            # minutes
    TUTELAGE_DATA=... python benchmarks/reasoning.py --model PATH --problems 300 --paths 40

A table of accuracies in percent, a row a method and a column a set; results/reasoning.json has the intervals, tokens
and seconds. By default the real stories260K, which has read children's stories alone: its figures show that the methods
run and what guessing gives, not what they are worth.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import common

import tutelage
from tutelage.icl.reasoning import METHODS, ReasonSettings, read_problems, reason

SETS = {
    "MultiArith": "zero_shot_cot/MultiArith",
    "GSM8K": "gsm8k",
    "last letters": "zero_shot_cot/last_letters",
    "coin flip": "zero_shot_cot/coin_flip",
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model folder, hub id or server; default: stories260K of TUTELAGE_DATA")
    parser.add_argument("--problems", type=int, default=100, help="of each set, drawn by the seed")
    parser.add_argument("--paths", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="small: does everything run")
    args = parser.parse_args(argv)
    if "TUTELAGE_DATA" not in os.environ:
        raise SystemExit("TUTELAGE_DATA must name a folder with reason/ in it")
    data = Path(os.environ["TUTELAGE_DATA"])
    count = 4 if args.quick else args.problems
    engine: Any = tutelage.load(args.model or data / "weights" / "stories260K" / "hf")
    settings = ReasonSettings(
        max_tokens=args.tokens, answer_tokens=12, paths=4 if args.quick else args.paths, clusters=4, max_candidates=8
    )
    rows: dict[str, dict[str, Any]] = {method: {} for method in METHODS}
    for name, path in SETS.items():
        problems = read_problems(data / "reason" / path)
        drawn = np.random.default_rng(args.seed).permutation(len(problems))[:count]
        for method in METHODS:
            result = reason(method, engine, [problems[i] for i in drawn], settings, args.seed)
            rows[method][name] = result.summary()
            low, high = result.interval
            print(f"{method:24}{name:14}{100 * result.accuracy:6.1f} [{100 * low:.1f}, {100 * high:.1f}]"
                  f"  {result.seconds:6.1f} s  {'; '.join(result.notes)[:100]}", flush=True)  # fmt: skip
    print(f"\n| | {' | '.join(SETS)} |\n|---|{'---|' * len(SETS)}")
    for method, found in rows.items():
        shares = [f"{100 * found[name]['accuracy']:.1f}" for name in SETS]
        print(f"| {method} | {' | '.join(shares)} |")
    facts = {"model": Path(args.model or "stories260K").name, "problems": count, "settings": str(settings)}
    common.save("reasoning", {**facts, "rows": rows, "machine": common.machine()}, args.quick)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
