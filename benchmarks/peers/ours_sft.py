"""Our side: `tutelage.run("sft")` on the rows as text. Argument: the job as JSON; answer: the last line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from memory import peak_mib

import tutelage


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Train; returns the loop's seconds, (step, loss) of the logged steps, where the model lies, and the peak."""
    out = tutelage.run(
        "sft", model=job["base"], data=job["rows"], held_out=job["held"], rows=job["count"], steps=job["steps"],
        batch_size=job["batch"], packing=job["packing"] != "none",
        block_size=job["max_length"] if job["packing"] == "blocks" else None, max_length=job["max_length"],
        precision=job["precision"], eval_every=0, save_every=0, seed=job["seed"], out=job["out"],
        optimizer={"name": "adamw", "lr": job["lr"], "warmup": 0.03, "decay": 0.97, "betas": [0.9, 0.999], "eps": 1e-8},
    )  # fmt: skip
    rows = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "seconds": rows[-1]["seconds"], "losses": [(row["step"], row["loss"]) for row in rows], "model": str(out),
        "steps": rows[-1]["step"], "peak_mib": peak_mib(),
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
