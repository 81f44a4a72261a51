"""Models trained from nothing on real novels against xz and 5-gram models, and fine-tuning on real instructions.

    TUTELAGE_DATA=... python benchmarks/real_text.py --full      # all recipes of recipes/real/ that concern text
    python benchmarks/real_text.py --compare runs/novels         # the table for one finished recipe

Everything is in bits per UTF-8 byte of the same held-out documents (chapter-long stretches that neither the tokenizer
nor any model saw). The models and n-grams pay for the end of every document, and xz for a newline in its place.
  xz -9, alone          the held-out text by itself
  xz -9, after training size(train + held-out) - size(train): the training text lies within its 64 MiB window
  5-gram, bytes/tokens  interpolated modified Kneser-Ney on the same training text, on bytes and on the model's tokens
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from ngram import KneserNey

ROOT = Path(__file__).resolve().parent.parent


def xz_size(data: bytes) -> int:
    """Bytes of `xz -9`."""
    return len(lzma.compress(data, format=lzma.FORMAT_XZ, preset=9))


def documents(shards: Any, tokenizer: Any) -> tuple[bytes, int]:
    """(the documents, each closed by a newline; their bytes without those): read back from the shards themselves."""
    texts = [tokenizer.decode(shards.document(i)[:-1]) for i in range(len(shards.documents) - 1)]
    joined = ("\n".join(texts) + "\n").encode("utf-8")
    return joined, len(joined) - len(texts)


def compare(run: Path) -> dict[str, Any]:
    """Bits per byte of the finished recipe in `run` (tokenizer, prepare, pretrain) and of the baselines."""
    from transformers import AutoTokenizer

    from tutelage.text.shards import TokenShards

    tokenizer = AutoTokenizer.from_pretrained(run / "tokenizer" / "tokenizer")
    parts = {name: TokenShards(run / "prepare" / name, tokenizer) for name in ("train", "validation")}
    ids = {name: shards.read(0, shards.tokens) for name, shards in parts.items()}
    (train, _), (held, size) = (documents(shards, tokenizer) for shards in parts.values())
    recorded = json.loads((run / "prepare" / "summary.json").read_text())
    if size != recorded["validation_bytes"]:
        raise SystemExit(f"{run}: the shards decode to {size} bytes, prepare recorded {recorded['validation_bytes']}")
    raw = [np.frombuffer(text, dtype=np.uint8) for text in (train, held)]
    model = json.loads((run / "pretrain" / "summary.json").read_text())
    last = json.loads((run / "pretrain" / "metrics.jsonl").read_text().splitlines()[-1])
    return {
        "run": run.name,
        "train_bytes": recorded["train_bytes"],
        "held_out_bytes": size,
        "vocabulary": len(tokenizer),
        "parameters": model["parameters"],
        "steps": last["step"],
        "train_seconds": round(last["seconds"]),
        "xz_alone": 8 * xz_size(held) / size,
        "xz_after_training_text": 8 * (xz_size(train + held) - xz_size(train)) / size,
        "bytes_5gram": KneserNey(raw[0], 5, 256).bits_of(raw[1], raw[0]) / size,
        "tokens_5gram": KneserNey(ids["train"], 5, len(tokenizer)).bits_of(ids["validation"], ids["train"]) / size,
        "model": model["bits_per_byte"],
    }


def show(row: dict[str, Any]) -> None:
    """The row as lines."""
    for key, value in row.items():
        print(f"  {key:24} {value:.4f}" if isinstance(value, float) else f"  {key:24} {value}", flush=True)


def full(out: Path, names: Sequence[str]) -> dict[str, Any]:
    """Run the recipes in `out` and compare; finished stages are kept."""
    from tutelage.pipeline.recipe import run_recipe

    found: dict[str, Any] = {"platform": platform.platform(), "threads": os.cpu_count(), "text": [], "sft": []}
    bases = {"alpaca_zh": "chinese", "t0": "novels"}
    for name in names:
        over: dict[str, Any] = {"out": str(out / name)}
        if name in bases:
            over["sft"] = {"model": str(out / bases[name] / "pretrain")}
        began = time.perf_counter()
        run = run_recipe(ROOT / "recipes" / "real" / f"{name}.toml", over)
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        if name in bases:
            row = {"run": name, **json.loads((run / "sft" / "summary.json").read_text())}
            found["sft"].append(row)
        else:
            row = compare(run)
            found["text"].append(row)
        show(row)
        (out / "real_text.json").write_text(json.dumps(found, indent=1, ensure_ascii=False))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--full", action="store_true", help="run the recipes in full, then compare")
    parser.add_argument("--compare", type=Path, help="run directory of one finished recipe")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "soak" / "real_text")
    parser.add_argument("--only", nargs="*", default=["novels", "chinese", "alpaca_zh", "t0"])
    args = parser.parse_args()
    if args.compare:
        show(compare(args.compare))
        return 0
    if not args.full:
        parser.error("give --full or --compare RUN")
    if not os.environ.get("TUTELAGE_DATA"):
        parser.error("set TUTELAGE_DATA to the folder of real data")
    missed = [
        f"{row['run']}: {row['model']:.3f} is not below {key} {row[key]:.3f}"
        for row in full(args.out, args.only)["text"]
        for key in ("xz_alone", "xz_after_training_text", "bytes_5gram", "tokens_5gram")
        if row["model"] >= row[key]
    ]
    print("\n".join(missed) or "every bar is met")
    return bool(missed)


if __name__ == "__main__":
    raise SystemExit(main())
