"""The engine against transformers.generate and lm-eval's own Hugging Face backend: same model, same numbers, fp32.

    python benchmarks/engine.py                      # about 15 minutes on two cores
    python benchmarks/engine.py --only score,stream  # some of: score, retrieved, generate, samples, stream, memory
    python benchmarks/engine.py --quick

score      200 inputs of 20 tokens x 4 labels of 3 tokens behind one set of demonstrations of 800 tokens
retrieved  the same, each input with demonstrations of its own: only its four labels share anything
generate   128 requests of 16 to 256 new tokens; transformers in batches of 32, as they come and (what nobody can do
           beforehand) sorted by how long they will become
samples    16 samples of 64 tokens of one prompt of 512 tokens
stream     one request of 128 tokens
           (these three also with compiled="frozen"; its first seconds are told apart)
memory     peak memory with 10,000 queued requests beside that with 200

The model is a random Qwen3 of 5.3 million parameters; every side runs in a process of its own, sides take turns, and
what is compared are medians. lm-eval runs at its quickest batch size of 1, 8, 32 and 64, tried on a part first.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import common

HERE = Path(__file__).resolve().parent / "peers"
MODEL = common.WORK / "engine" / "model"
BARS = {"score": 60.0, "retrieved": 3.0, "generate": 3.0, "samples": 4.0, "stream": 1.3}
BATCHES = (1, 8, 32, 64)
ALLOWED = 64e6
"""Bytes by which the peak may grow with the length of the queue: requests, results and their texts are kept."""


def make_model() -> str:
    """The model's folder, made on the first call."""
    if not (MODEL / "config.json").exists():
        import torch
        from transformers import AutoModelForCausalLM

        from tutelage.model.presets import build_config

        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(build_config("laptop-5m", 2048, 2048)).save_pretrained(MODEL)
    return str(MODEL)


def ours(job: dict[str, Any]) -> dict[str, Any]:
    return common.run_side(sys.executable, HERE / "ours_engine.py", {"model": make_model(), **job})


def hf(job: dict[str, Any]) -> dict[str, Any]:
    return common.run_side(sys.executable, HERE / "hf_generate.py", {"model": make_model(), **job})


def lmeval(job: dict[str, Any]) -> dict[str, Any]:
    return common.run_side(common.peer_python("lmeval"), HERE / "lmeval_score.py", {"model": make_model(), **job})


def scoring(what: str, rounds: int, inputs: int) -> dict[str, Any]:
    """Seconds for all requests, and the largest difference between the two sides' log-probs."""
    job = {"what": what, "inputs": inputs}
    tried = {batch: lmeval({**job, "inputs": max(4, inputs // 20), "batch": batch})["seconds"] for batch in BATCHES}
    best = min(tried, key=lambda batch: tried[batch])
    theirs, mine = [], []
    for _ in range(rounds):
        mine.append(ours(job))
        theirs.append(lmeval({**job, "batch": best}))
    gap = max(abs(a - b) for a, b in zip(mine[0]["scores"], theirs[0]["scores"], strict=True))
    row = _row(what, [m["seconds"] for m in mine], [t["seconds"] for t in theirs], "s")
    return {**row, "peer_name": "lm-eval", "peer_batch": best, "largest_difference": gap}


def generation(what: str, rounds: int, share: float) -> dict[str, Any]:
    """Seconds for all requests."""
    job = {"what": what, "share": share}
    mine, theirs, compiled = [], [], []
    for _ in range(rounds):
        mine.append(ours(job))
        theirs.append(hf(job))
        compiled.append(ours({**job, "compiled": "frozen"}))
    row = _row(what, [m["seconds"] for m in mine], [t["seconds"] for t in theirs], "s")
    if what == "generate":
        row["ratio_sorted"] = statistics.median(t["sorted"] for t in theirs) / row["ours"]
    row["compiled"] = statistics.median(c["seconds"] for c in compiled)
    row["ratio_compiled"] = row["peer"] / row["compiled"]
    row["compile_seconds"] = compiled[0]["first_seconds"]
    row["met"] = max(row["ratio"], row["ratio_compiled"]) >= row["bar"]
    return {**row, "peer_name": "transformers", "tokens": mine[0]["tokens"]}


def _row(name: str, mine: list[float], theirs: list[float], unit: str) -> dict[str, Any]:
    a, b = statistics.median(mine), statistics.median(theirs)
    ratio = b / a
    return {
        "name": name, "ours": a, "peer": b, "unit": unit, "ratio": ratio, "bar": BARS[name], "met": ratio >= BARS[name],
        "ours_all": mine, "peer_all": theirs, "machine": common.machine(),
    }  # fmt: skip


def memory(requests: int) -> dict[str, Any]:
    """Peak resident bytes above those before the first request, for a short and a long queue."""
    short, long = ours({"what": "memory", "requests": 200}), ours({"what": "memory", "requests": requests})
    grown = long["peak"] - short["peak"]
    return {
        "name": "memory", "requests": requests, "kv_bytes": long["kv_bytes"], "peak_200": short["peak"],
        "peak": long["peak"], "grown": grown, "allowed": ALLOWED, "met": grown <= ALLOWED, "machine": common.machine(),
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="score,retrieved,generate,samples,stream,memory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small and once: does everything run")
    args = parser.parse_args(argv)
    rounds = 1 if args.quick else args.rounds
    rows = []
    for name in args.only.split(","):
        if name in ("score", "retrieved"):
            row = scoring(name, rounds, 12 if args.quick else 200)
        elif name == "memory":
            row = memory(1_000 if args.quick else 10_000)
        elif name in BARS:
            row = generation(name, rounds, 0.1 if args.quick else 1.0)
        else:
            parser.error(f"--only {name}: one of score, retrieved, generate, samples, stream, memory")
        rows.append(row)
        print(common.verdict({**row, "met": row["ratio"] >= row["bar"]}) if "ratio" in row else row, flush=True)
        for key in ("largest_difference", "peer_batch", "ratio_sorted", "ratio_compiled", "compile_seconds"):
            if key in row:
                print(f"  {key} {row[key]:.3g}")
        common.save(f"engine_{name}", row, args.quick)
    return int(not args.quick and not all(row["met"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
