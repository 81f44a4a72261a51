"""The studies of why in-context learning works: GINC beside its exact posterior, and induction heads as they form.

GINC's bars: with 64 examples the transformer is right more often than with none (disjoint 95% intervals), and the one
whose pretraining knew a single HMM is not. Induction's: the best head's prefix-matching score above 0.8, and the loss
falls fastest where the score rises fastest (within two evaluations). Results in results/ginc.json and induction.json;
what finished in --out is not run again.

    python benchmarks/why_it_works.py [--quick] [--only ginc|induction] [--out runs/why]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import common

QUICK: dict[str, dict[str, Any]] = {
    "ginc": {"vocabulary": 30, "lengths": [3], "examples": [0, 2], "prompts": 20, "steps": 4, "ablation_steps": 3,
             "block_size": 32, "model": "laptop-0.3m"},
    "induction": {"steps": 20, "eval_every": 10},
}  # fmt: skip


def study(name: str, out: Path, seed: int, quick: bool) -> dict[str, Any]:
    """One study's summary with its whole configuration, seconds and the machine."""
    from tutelage.core.rundir import read_manifest
    from tutelage.pipeline.stages import config_class, launch, read_summary

    given = {**(QUICK[name] if quick else {}), "seed": seed, "out": str(out)}
    path, _ = launch(name, given)
    row = {"name": name, "command": f"tutelage study {name} seed={seed}",
           "seconds": (read_manifest(path) or {})["seconds"],
           "config": config_class(name).model_validate({**given, "out": None}).model_dump(mode="json"),
           **read_summary(path), "machine": common.machine()}  # fmt: skip
    met = [v for k, v in row.items() if k.startswith(("rises_", "one_hmm_flat_"))]
    row["met"] = all(met) if name == "ginc" else bool(row["coincides"] and row["prefix"] > 0.8)
    return row


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps: proves only that it runs")
    parser.add_argument("--only", choices=("ginc", "induction"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    rows = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in [args.only] if args.only else ["ginc", "induction"]:
            rows[name] = study(name, (args.out or Path(scratch)) / f"{name}-{args.seed}", args.seed, args.quick)
            shown = {k: v for k, v in rows[name].items() if not isinstance(v, dict | list)}
            print(json.dumps(shown, indent=1), flush=True)
            common.save(name if args.seed == 0 else f"{name}_seed{args.seed}", rows[name], args.quick)
    return rows


if __name__ == "__main__":
    main()
