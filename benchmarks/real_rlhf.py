"""The three ChatGPT steps on the real stories260K (recipes/real/stories.toml): does the true function rise?

    TUTELAGE_DATA=... python benchmarks/real_rlhf.py              # one seed, about 4 minutes on two cores
    TUTELAGE_DATA=... python benchmarks/real_rlhf.py --full       # three seeds

For each seed: the score before and after PPO on prompts of held-out stories, the gain paired by prompt with its 95%
interval (sampled, at temperature 0.3, greedy), and the loss on held-out stories of the
pretrained model, after SFT and after PPO. Finished stages are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import common

RECIPE = common.ROOT / "recipes" / "real" / "stories.toml"
TEXT = ("sft_val_text_loss_before", "sft_val_text_loss", "ppo_text_loss")
BESIDE = ("reward_accuracy", "reward_accuracy_low", "reward_length_only_accuracy", "ppo_kl", "ppo_eos_rate")


def one(out: Path, seed: int) -> dict[str, Any]:
    """Results of one seed."""
    from tutelage.pipeline import run_recipe

    run_recipe(RECIPE, {"out": str(out), "seed": seed})
    return json.loads((out / "summary.json").read_text(encoding="utf-8"))["results"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="three seeds")
    parser.add_argument("--out", type=Path, default=common.WORK / "real_rlhf")
    args = parser.parse_args(argv)
    if not os.environ.get("TUTELAGE_DATA"):
        parser.error("set TUTELAGE_DATA to the folder that holds weights/stories260K and text/tinystories_tiny")
    found = [one(args.out / f"seed{seed}", seed) for seed in range(3 if args.full else 1)]
    keys = [key for key in found[0] if key.startswith(("sft_", "rlhf_")) and "_val_" not in key and "loss" not in key]
    for key in (*keys, *BESIDE, *TEXT):
        values = [run[key] for run in found if key in run]
        if values:
            print(f"{key:32} {'  '.join(f'{value:8.4f}' for value in values)}")
    held = all(run["rlhf_gain_sampled_low"] > 0 for run in found)
    print("the true function rose, interval excluding zero, on every seed" if held else "it did not rise on every seed")
    common.save("real_rlhf", {"name": "real_rlhf", "seeds": found, "machine": common.machine()}, not args.full)
    return 0 if held else 1


if __name__ == "__main__":
    raise SystemExit(main())
