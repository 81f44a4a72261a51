"""Reward model on rankings of K = 9: our K-wise stage (9 forwards a prompt) against TRL's RewardTrainer (36 pairs, 72
forwards): comparisons per second, and held-out accuracy.

Both start from the same SFT model and are given the same token ids; each at its quickest precision, attention and batch
(tried first) and at the best of the same learning rates. Accuracy is measured by one program for both, after one pass
of TRL's, one of ours (fewer steps, so less is learnt) and PASSES of ours, with the time that each took.

    python benchmarks/reward_vs_trl.py            # 5 seeds; the first call makes .venv-bench-trl
    python benchmarks/reward_vs_trl.py --quick
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import common
import ground
import task

BAR = 8.0
PEERS = Path(__file__).resolve().parent / "peers"
MAX_LENGTH = 128
OURS = [{"precision": p, "batch_prompts": b} for p in ("fp32", "bf16") for b in (8, 16)]
THEIRS = [
    {"precision": p, "attention": a, "batch_pairs": b}
    for p in ("fp32", "bf16") for a in ("eager", "sdpa") for b in (64, 128)
]  # fmt: skip
PASSES = 3
RATES = (5e-4, 1e-3, 2e-3)


def accuracy(model_dir: str, rows: list[dict[str, Any]]) -> float:
    """Share of the held-out pairs that the saved reward model orders rightly."""
    from tutelage.model.heads import RewardModel
    from tutelage.model.hub import load_tokenizer
    from tutelage.train.reward_data import encode_ranking, score_rankings
    from tutelage.train.reward_report import pair_accuracy

    folder = Path(model_dir) / "model" if (Path(model_dir) / "model").is_dir() else Path(model_dir)
    model, tokenizer = RewardModel.load(folder).eval(), load_tokenizer(folder)
    encoded = [encode_ranking(row, tokenizer, MAX_LENGTH) for row in rows]
    return pair_accuracy(rows, score_rankings(model, encoded, tokenizer.pad_token_id))


def write_data(folder: Path, seed: int, train: int, held: int, sft: str) -> dict[str, Any]:
    """Rankings for us, the same as tokenised pairs for the peer; number of comparisons."""
    import random

    from tutelage.model.hub import load_tokenizer
    from tutelage.train.reward_data import encode_ranking
    from tutelage.train.reward_report import better_pairs

    rows, tests = task.ranking_rows(train, 100 + seed), task.ranking_rows(held, 7_000 + seed)
    tokenizer = load_tokenizer(sft)
    pairs = []
    for row in rows:
        ids = encode_ranking(row, tokenizer, MAX_LENGTH)["ids"]
        pairs += [{"chosen_ids": ids[i], "rejected_ids": ids[j]} for i, j, _ in better_pairs(row)]
    random.Random(seed).shuffle(pairs)
    for name, lines in (("rankings.jsonl", rows), ("heldout.jsonl", tests[:4]), ("pairs.jsonl", pairs)):
        (folder / name).write_text("".join(json.dumps(x) + "\n" for x in lines), encoding="utf-8")
    return {"data": str(folder), "pairs": str(folder / "pairs.jsonl"), "comparisons": len(pairs), "held": tests}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps, one seed, no trials")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=1000, help="ranked prompts, 36 comparisons each")
    parser.add_argument("--held", type=int, default=200, help="held-out prompts")
    args = parser.parse_args(argv)
    if args.quick:
        args.seeds, args.prompts, args.held = 1, 16, 8
    import torch

    from tutelage.core.runtime import set_threads

    set_threads()
    paths = ground.ground(args.quick)
    scratch = common.WORK / "reward"
    scratch.mkdir(parents=True, exist_ok=True)

    def go(
        name: str, settings: dict[str, Any], prompts: int, seed: int, lr: float, passes: int = 1
    ) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            data = write_data(Path(folder), seed, prompts, args.held, paths["sft"])
            held, comparisons = data.pop("held"), data["comparisons"]
            job = {
                **data, **settings, "sft": paths["sft"], "seed": seed, "lr": lr, "prompts": prompts,
                "passes": passes,
                "max_length": MAX_LENGTH, "threads": torch.get_num_threads(), "out": str(Path(folder) / "out"),
            }  # fmt: skip
            python = common.peer_python() if name == "trl" else sys.executable
            out = common.run_side(python, PEERS / f"{name}_reward.py", job)
            speed = comparisons * out["share"] / out["seconds"]
            seconds = out["seconds"] / out["share"] * passes
            return {"comparisons_per_second": speed, "seconds": seconds, "accuracy": accuracy(out["model"], held)}

    best: dict[str, dict[str, Any]] = {"ours": OURS[0], "trl": THEIRS[0]}
    rates, trials = {"ours": 1e-3, "trl": 1e-3}, {}
    if not args.quick:
        for name, choices in (("ours", OURS), ("trl", THEIRS)):
            few = 320 if name == "ours" else 64
            tried = [{**c, **go(name, c, few, 99, 1e-3)} for c in choices]
            best[name] = choices[max(range(len(tried)), key=lambda i: tried[i]["comparisons_per_second"])]
            scores = {lr: go(name, best[name], args.prompts // 2, 98, lr)["accuracy"] for lr in RATES}
            rates[name] = max(scores, key=lambda lr: scores[lr])
            trials[name] = {"speed": tried, "accuracy_by_rate": scores}
            print(name, trials[name], flush=True)
    runs = []
    for seed in range(args.seeds):
        pair = {name: go(name, best[name], args.prompts, seed, rates[name]) for name in ("ours", "trl")}
        longer = go("ours", best["ours"], args.prompts, seed, rates["ours"], PASSES)
        runs.append({"seed": seed, **pair, "ours_longer": longer})
        print(f"seed {seed}: {pair}", flush=True)
    ours, peer = (statistics.median(r[n]["comparisons_per_second"] for r in runs) for n in ("ours", "trl"))
    ratio = statistics.median(r["ours"]["comparisons_per_second"] / r["trl"]["comparisons_per_second"] for r in runs)
    differences = {
        name: common.mean_interval([r[name]["accuracy"] - r["trl"]["accuracy"] for r in runs])
        for name in ("ours", "ours_longer")
    }
    share = statistics.median(r["ours_longer"]["seconds"] / r["trl"]["seconds"] for r in runs)
    row = {
        "name": "reward_vs_trl", "what": "reward model, K=9: comparisons/s", "ours": ours, "peer": peer,
        "unit": "comparisons/s", "ratio": ratio, "bar": f">= {BAR}", "met": ratio >= BAR,
        "accuracy_ours": statistics.mean(r["ours"]["accuracy"] for r in runs),
        "accuracy_peer": statistics.mean(r["trl"]["accuracy"] for r in runs),
        "accuracy_ours_longer": statistics.mean(r["ours_longer"]["accuracy"] for r in runs), "passes": PASSES,
        "time_longer_over_theirs": share, "accuracy_differences": differences, "settings": best, "rates": rates,
        "trials": trials, "peers": list(common.PEERS["trl"]), "machine": common.machine(), "runs": runs,
    }  # fmt: skip
    print(common.verdict(row))
    for name, (mean, half) in differences.items():
        words = "after one pass each" if name == "ours" else f"after {PASSES} passes of ours in {share:.2f} of its time"
        print(f"held-out accuracy, ours minus TRL's, {words}: {mean:+.4f} +- {half:.4f} over {len(runs)} seeds")
    common.save("reward_vs_trl", row, args.quick)
    return row


if __name__ == "__main__":
    main()
