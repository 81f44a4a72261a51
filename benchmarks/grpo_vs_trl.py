"""GRPO steps per second against TRL's current GRPOTrainer, with one plain reward function on both sides.

Same SFT checkpoint (1.06M Llama), prompts (the bare question, or behind `--shots` demonstrations as in few-shot
prompts), batch of 64 answers in groups of 8, at most 16 new tokens, one optimiser step a rollout, KL coefficient 0.04
with k3 in the loss, learning rate and clipping; each library in its own process, at the precision, attention and
use of torch.compile that are quickest for it on this machine (tried first), runs interleaved seed by seed.

    python benchmarks/grpo_vs_trl.py            # 3 seeds; the first call makes .venv-bench-trl_now
    python benchmarks/grpo_vs_trl.py --quick    # two updates, one seed: does it run
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import common
import ground
import task

BAR = 3.0
PEERS = Path(__file__).resolve().parent / "peers"
OURS: list[dict[str, Any]] = [{"precision": "fp32"}, {"precision": "bf16"}]
THEIRS: list[dict[str, Any]] = [{"precision": p, "attention": a} for p in ("fp32", "bf16") for a in ("eager", "sdpa")]


def few_shot(file: str, shots: int) -> str:
    """A file of the same prompts, each behind `shots` demonstrations."""
    if not shots:
        return file
    rng = random.Random(0)
    out = Path(file).with_name(f"prompts_{shots}_shots.jsonl")
    rows = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
    shown = task.sft_rows(500, 17)
    for row in rows:
        before = "".join(f"{d['prompt']} {d['completion']} . " for d in rng.sample(shown, shots))
        row["prompt"] = before + row["prompt"]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(out)


def steps_per_second(seconds: list[float]) -> float:
    """Of the median step, the first two left out where there are more (start-up)."""
    return 1 / statistics.median(seconds[2:] or seconds)


def side(name: str, job: dict[str, Any]) -> dict[str, Any]:
    """Run one side on a job; adds the speed and the reward of the last five steps."""
    python = common.peer_python("trl_now") if name == "trl" else sys.executable
    out = common.run_side(python, PEERS / f"{name}_grpo.py", job)
    out["steps_per_second"] = steps_per_second(out["seconds"])
    out["last_reward"] = statistics.mean(out["reward"][-5:])
    return out


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two updates, one seed, no trial of precisions")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--beta", type=float, default=0.04)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--shots", type=int, default=0, help="demonstrations before each question")
    args = parser.parse_args(argv)
    import torch

    from tutelage.core.runtime import set_threads

    set_threads()
    paths = ground.ground(args.quick)
    paths["prompts"] = few_shot(paths["prompts"], args.shots)
    scratch = common.WORK / "grpo"
    shared = {
        **paths, "lr": args.lr, "beta": args.beta, "batch": args.batch, "group": args.group, "epochs": 1,
        "threads": torch.get_num_threads(),
    }  # fmt: skip

    def go(name: str, settings: dict[str, Any], updates: int, seed: int) -> dict[str, Any]:
        scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            return side(name, {**shared, **settings, "updates": updates, "seed": seed, "out": str(Path(folder) / "r")})

    def attempt(name: str, settings: dict[str, Any]) -> float:
        return go(name, settings, 8, 99)["steps_per_second"]

    best = {name: {**choices[0], "compiled": False} for name, choices in (("ours", OURS), ("trl", THEIRS))}
    trials: dict[str, list[dict[str, Any]]] = {}
    if not args.quick:
        for name, choices in (("ours", OURS), ("trl", THEIRS)):
            speed = partial(attempt, name)
            trials[name] = common.trials(choices, "steps_per_second", speed)
            best[name] = {k: v for k, v in trials[name][0].items() if k != "steps_per_second"}
            print(name, "trials:", trials[name], flush=True)
    runs = []
    for seed in range(1 if args.quick else args.seeds):
        pair = {name: go(name, best[name], 2 if args.quick else args.updates, seed) for name in ("ours", "trl")}
        runs.append({"seed": seed, **pair})
        words = [f"{pair[n]['steps_per_second']:.2f} steps/s, reward {pair[n]['last_reward']:.3f}" for n in pair]
        print(f"seed {seed}: {words[0]} against {words[1]}", flush=True)
    ours, peer = (statistics.median(r[name]["steps_per_second"] for r in runs) for name in ("ours", "trl"))
    ratio = statistics.median(r["ours"]["steps_per_second"] / r["trl"]["steps_per_second"] for r in runs)
    name = f"grpo_vs_trl_{args.shots}_shots" if args.shots else "grpo_vs_trl"
    shape = f"{args.batch} answers in groups of {args.group}, 16 new tokens, {args.shots} shots"
    row = {
        "name": name, "what": f"GRPO steps/s: {shape}, 1.06M Llama",
        "ours": ours, "peer": peer, "unit": "steps/s", "ratio": ratio, "bar": f">= {BAR}", "met": ratio >= BAR,
        "settings": best, "trials": trials, "peers": list(common.PEERS["trl_now"]), "machine": common.machine(),
        "runs": runs,
    }  # fmt: skip
    print(common.verdict(row))
    common.save(name, row, args.quick)
    return row


if __name__ == "__main__":
    main()
