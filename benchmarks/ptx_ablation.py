"""What the pretraining gradient of PPO-ptx buys: PPO from one SFT model with weight 0, the demo's, and more.

The loss of held-out text before and after, at the gold score reached. Every run has the same prompts and reward model.

    python benchmarks/ptx_ablation.py runs/demo [--updates 45] [--seeds 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import common

WEIGHTS = (0.0, 0.3, 1.0)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="a finished run of recipes/demo.toml")
    parser.add_argument("--updates", type=int, default=45)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=common.WORK / "ptx")
    args = parser.parse_args(argv)
    import tutelage

    runs: list[dict[str, Any]] = []
    for weight in WEIGHTS:
        for seed in range(args.seeds):
            out = tutelage.run(
                "ppo", model=str(args.demo / "sft"), reward=str(args.demo / "reward"), seed=seed,
                ptx_data=str(args.demo / "prepare"), ptx_coef=weight, updates=args.updates,
                out=str(args.out / f"weight{weight}-seed{seed}"), restart=True,
            )  # fmt: skip
            found = json.loads((out / "summary.json").read_text(encoding="utf-8"))
            runs.append({"weight": weight, "seed": seed, **found})
    rows = []
    for weight in WEIGHTS:
        part = [r for r in runs if r["weight"] == weight]
        rise, half = common.mean_interval([r["text_loss"] - r["text_loss_before"] for r in part])
        gold, kl = (statistics.mean(r[key] for r in part) for key in ("last_mean5", "kl"))
        rows.append({"weight": weight, "text_loss_rise": rise, "interval": half, "gold": gold, "kl": kl})
        print(f"ptx weight {weight:<4} text loss {rise:+.4f} +- {half:.4f} nats a token  gold {gold:.3f}  KL {kl:.2f}")
    found = {"name": "ptx_ablation", "rows": rows, "runs": runs, "machine": common.machine()}
    common.save("ptx_ablation", found, False)
    return int(rows[1]["text_loss_rise"] >= rows[0]["text_loss_rise"])


if __name__ == "__main__":
    raise SystemExit(main())
