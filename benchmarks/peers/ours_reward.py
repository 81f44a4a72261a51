"""Our side: `tutelage.run("reward")`, K forwards a prompt. Argument: the job as JSON; answer: the last line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import tutelage


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Train on the rankings `passes` times over; returns the loop's seconds and where the model lies."""
    out = tutelage.run(
        "reward", model=job["sft"], data=job["data"], features=False,
        steps=job["passes"] * job["prompts"] // job["batch_prompts"],
        batch_size=job["batch_prompts"], max_length=job["max_length"], precision=job["precision"], save_every=0,
        seed=job["seed"], out=job["out"],
        optimizer={"name": "adamw", "lr": job["lr"], "warmup": 0.03, "decay": 0.97, "betas": [0.9, 0.999], "eps": 1e-8},
    )  # fmt: skip
    rows = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = rows[-1]["step"] - rows[0]["step"]  # the first step's start-up is left out on both sides
    share = job["passes"] * steps / rows[-1]["step"]
    return {"seconds": rows[-1]["seconds"] - rows[0]["seconds"], "share": share, "model": str(out)}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
