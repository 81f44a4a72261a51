"""16-shot SST-2 (real inputs, direct scoring, one set of demonstrations) against lm-eval's own Hugging Face backend.

    TUTELAGE_DATA=... python benchmarks/icl_sst2.py            # about 10 minutes on two cores
    TUTELAGE_DATA=... python benchmarks/icl_sst2.py --quick

A random Qwen3 of 5 million parameters with context 4,096 and a byte-level BPE trained on the inputs; fp32. Both sides
start from the same texts and encode them themselves. lm-eval runs the first 100 inputs at its quickest batch size of 1,
8, 32 and 64, and its time is scaled to all 872. The bar is 1.2 times the ratio of tokens that the two sides compute.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import common

HERE = Path(__file__).resolve().parent / "peers"
FOLDER = common.WORK / "icl"
BATCHES = (1, 8, 32, 64)
BAR = 1.2


def prepare(data: str) -> dict[str, Any]:
    """The model's folder with its tokenizer, and the texts of both sides; made on the first call."""
    from tutelage.icl.evaluate import Setting
    from tutelage.icl.prompts import Prompter
    from tutelage.icl.tasks import load_task

    task = load_task("sst2", data)
    pool, queries = task.examples("train"), task.examples("test")
    demos = pool[: Setting(shots=16).shots]
    model = FOLDER / "model"
    if not (model / "tokenizer.json").exists():
        import torch
        from transformers import AutoModelForCausalLM

        from tutelage.model.presets import build_config
        from tutelage.text.tokenizer import train_tokenizer

        tokenizer = train_tokenizer([e.text for e in (*pool, *queries)], 2048)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(build_config("laptop-5m", len(tokenizer), 4096)).save_pretrained(model)
        tokenizer.save_pretrained(model)
    prompter = Prompter(task.format)
    prefix = prompter.prefix(demos)
    pairs = [[prefix + a, b] for q in queries for a, b in (prompter.pair(q, option) for option in q.options)]
    (FOLDER / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    return {"model": str(model), "pairs": str(FOLDER / "pairs.json"), "data": data, "queries": len(queries)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small and once: does everything run")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    data = os.environ.get("TUTELAGE_DATA") or parser.error("TUTELAGE_DATA must name the folder of real data")
    job = prepare(data)
    some = 8 if args.quick else 100
    peer = common.peer_python("lmeval")

    def theirs(inputs: int, batch: int) -> dict[str, Any]:
        return common.run_side(peer, HERE / "icl_lmeval.py", {**job, "inputs": inputs, "batch": batch})

    tried = {batch: theirs(8, batch)["seconds"] for batch in BATCHES}
    best = min(tried, key=lambda batch: tried[batch])
    mine, peers = [], []
    for _ in range(1 if args.quick else args.rounds):
        mine.append(common.run_side(sys.executable, HERE / "icl_ours.py", job))
        peers.append(theirs(some, best))
    scale = job["queries"] / some
    ours, peer_seconds = (
        statistics.median(m["seconds"] for m in mine), statistics.median(p["seconds"] for p in peers) * scale
    )  # fmt: skip
    tokens = peers[0]["tokens"] * scale / mine[0]["tokens"]
    count = len(peers[0]["scores"])
    gap = max(abs(a - b) for a, b in zip(mine[0]["scores"], peers[0]["scores"]))
    same = all(
        (a[0] > a[1]) == (b[0] > b[1])
        for a, b in zip(_pairs(mine[0]["scores"][:count]), _pairs(peers[0]["scores"]), strict=True)
    )
    ratio = peer_seconds / ours
    row = {
        "name": "icl_sst2", "ours": ours, "peer": peer_seconds, "unit": "s", "ratio": ratio, "tokens_ratio": tokens,
        "bar": BAR * tokens, "met": ratio >= BAR * tokens, "peer_name": "lm-eval", "peer_batch": best,
        "peer_inputs": some, "largest_difference": gap, "same_answers": same, "ours_all": [m["seconds"] for m in mine],
        "peer_all": [p["seconds"] for p in peers], "machine": common.machine(),
    }  # fmt: skip
    print(common.verdict(row))
    print(f"  tokens {tokens:.1f}x fewer; largest difference {gap:.2g}; same answers: {same}; lm-eval's batch {best}")
    common.save("icl_sst2", row, args.quick)
    return int(not args.quick and not row["met"])


def _pairs(scores: list[float]) -> list[tuple[float, float]]:
    return list(zip(scores[::2], scores[1::2], strict=True))


if __name__ == "__main__":
    raise SystemExit(main())
