"""PPO episodes per second against TRL 1.12.0's PPOTrainer, and the gold score reached at equal KL.

Same SFT and reward checkpoints (1.06M Llama), same prompts, batch 64, at most 16 new tokens, 4 inner epochs of one
minibatch, same learning rate, KL coefficient, clipping and penalties; each library in its own process, at the
precision, attention and use of torch.compile that are quickest for it on this machine (tried first), runs interleaved
seed by seed.

    python benchmarks/ppo_vs_trl.py            # 5 seeds; the first call makes .venv-bench-trl
    python benchmarks/ppo_vs_trl.py --quick    # two updates, one seed: does it run
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import common
import ground
import task

BAR = 2.5
PEERS = Path(__file__).resolve().parent / "peers"
TOPIC = {ask.format(topic): topic for ask in task.ASKS for topic in task.TOPICS}
OURS: list[dict[str, Any]] = [{"precision": "fp32"}, {"precision": "bf16"}]
THEIRS: list[dict[str, Any]] = [{"precision": p, "attention": a} for p in ("fp32", "bf16") for a in ("eager", "sdpa")]


def encode(paths: dict[str, str]) -> str:
    """The prompts' token ids as our stage makes them, so that the peer's prompts are the same to the token."""
    from transformers import AutoTokenizer

    from tutelage.text.chat import encode_prompt

    tokenizer = AutoTokenizer.from_pretrained(paths["sft"] + "/model")
    out = Path(paths["prompts"]).with_name("prompts_encoded.jsonl")
    rows = [json.loads(line) for line in Path(paths["prompts"]).read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["ids"] = list(encode_prompt(tokenizer, [{"role": "user", "content": row["prompt"]}]))
    out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(out)


def gold_curve(answers: list[list[list[str]]]) -> list[float]:
    """Mean gold score of every update's answers."""
    return [statistics.mean(task.gold(TOPIC[prompt], text) for prompt, text in batch) for batch in answers]


def episodes_per_second(seconds: list[float]) -> float:
    """Of the median update, the first two left out where there are more (start-up)."""
    return 64 / statistics.median(seconds[2:] or seconds)


def at_equal_kl(ours: dict[str, Any], theirs: dict[str, Any], window: int = 5) -> dict[str, float] | None:
    """Gold of both where their KL curves (means over `window` updates) reach the same value: the largest both reach."""
    import numpy as np

    def smooth(values: list[float]) -> np.ndarray:
        width = min(window, len(values))
        return np.convolve(values, np.ones(width) / width, "valid")

    a, b = (np.maximum.accumulate(smooth(side["kl"])) for side in (ours, theirs))
    kl = float(min(a[-1], b[-1]))
    if kl <= max(a[0], b[0]):
        return None
    gold = [float(np.interp(kl, k, smooth(side["gold"]))) for k, side in ((a, ours), (b, theirs))]
    return {"kl": kl, "ours": gold[0], "theirs": gold[1]}


def side(name: str, job: dict[str, Any]) -> dict[str, Any]:
    """Run one side on a job; adds the gold curve and the speed."""
    python = common.peer_python() if name == "trl" else sys.executable
    out = common.run_side(python, PEERS / f"{name}_ppo.py", job)
    out["gold"] = gold_curve(out.pop("answers"))
    out["episodes_per_second"] = episodes_per_second(out["seconds"])
    return out


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two updates, one seed, no trial of precisions")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--kl-coef", type=float, default=0.05)
    args = parser.parse_args(argv)
    import torch

    from tutelage.core.runtime import set_threads

    set_threads()
    paths = ground.ground(args.quick)
    scratch = common.WORK / "ppo"
    shared = {
        **paths, "encoded": encode(paths), "lr": args.lr, "kl_coef": args.kl_coef, "threads": torch.get_num_threads(),
    }  # fmt: skip

    def go(name: str, settings: dict[str, Any], updates: int, seed: int) -> dict[str, Any]:
        import tempfile

        scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            job = {**shared, **settings, "updates": updates, "seed": seed, "out": str(Path(folder) / "run")}
            return side(name, job)

    def attempt(name: str, settings: dict[str, Any]) -> float:
        return go(name, settings, 8, 99)["episodes_per_second"]

    best = {name: {**choices[0], "compiled": False} for name, choices in (("ours", OURS), ("trl", THEIRS))}
    trials: dict[str, list[dict[str, Any]]] = {}
    if not args.quick:
        for name, choices in (("ours", OURS), ("trl", THEIRS)):
            speed = partial(attempt, name)
            trials[name] = common.trials(choices, "episodes_per_second", speed)
            best[name] = {k: v for k, v in trials[name][0].items() if k != "episodes_per_second"}
            print(name, "trials:", trials[name], flush=True)
    runs = []
    for seed in range(1 if args.quick else args.seeds):
        pair = {name: go(name, best[name], 2 if args.quick else args.updates, seed) for name in ("ours", "trl")}
        meeting = at_equal_kl(pair["ours"], pair["trl"])
        runs.append({"seed": seed, **pair, "equal_kl": meeting})
        ours, peer = (pair[name]["episodes_per_second"] for name in ("ours", "trl"))
        print(f"seed {seed}: {ours:.1f} against {peer:.1f} episodes/s; gold at equal KL {meeting}", flush=True)
    ours, peer = (statistics.median(r[name]["episodes_per_second"] for r in runs) for name in ("ours", "trl"))
    ratio = statistics.median(r["ours"]["episodes_per_second"] / r["trl"]["episodes_per_second"] for r in runs)
    met = [r["equal_kl"] for r in runs if r["equal_kl"]]
    mean, half = common.mean_interval([m["ours"] - m["theirs"] for m in met]) if met else (float("nan"), float("nan"))
    row = {
        "name": "ppo_vs_trl", "what": "PPO episodes/s: batch 64, 16 new tokens, 4 inner epochs, 1.06M Llama",
        "ours": ours, "peer": peer, "unit": "episodes/s", "ratio": ratio, "bar": f">= {BAR}", "met": ratio >= BAR,
        "gold_difference_at_equal_kl": mean, "gold_difference_interval": half, "settings": best, "trials": trials,
        "peers": list(common.PEERS["trl"]), "machine": common.machine(), "runs": runs,
    }  # fmt: skip
    print(common.verdict(row))
    print(f"gold at equal KL, ours minus TRL's: {mean:+.3f} +- {half:.3f} over {len(met)} seeds")
    common.save("ppo_vs_trl", row, args.quick)
    return row


if __name__ == "__main__":
    main()
