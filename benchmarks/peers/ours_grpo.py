"""Our side: `tutelage.run("grpo")` on one job, watched from outside. Argument: the job as JSON; answer: last line."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import task

import tutelage
from tutelage.train import rl


def gold(prompts: list[str], completions: list[str], topic: list[str], **columns: Any) -> list[float]:
    """The task's own score, the reward function of both sides."""
    return [task.gold(t, c) for t, c in zip(topic, completions)]


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Run GRPO; returns seconds between updates, and KL, reward and length of each."""
    marks: list[float] = []
    sample = rl.sample_episodes

    def watched(*args: Any, **kwargs: Any) -> Any:
        marks.append(time.perf_counter())
        return sample(*args, **kwargs)

    rl.sample_episodes = watched  # type: ignore[assignment]
    out = tutelage.run(
        "grpo", model=job["sft"], reward=gold, data=job["prompts"], updates=job["updates"], batch_size=job["batch"],
        group_size=job["group"], minibatches=1, epochs=job["epochs"], max_tokens=16, kl_coef=job["beta"],
        temperature=1.0, missing_eos_penalty=0.0, ptx_coef=0.0, precision=job["precision"],
        compiled=job["compiled"], save_every=0, sample_every=10**6, seed=job["seed"], gate=None,
        optimizer={"name": "adamw", "lr": job["lr"], "decay": 0.0, "warmup": 0.0, "betas": [0.9, 0.999], "eps": 1e-8},
        out=job["out"],
    )  # fmt: skip
    marks.append(time.perf_counter())
    rows = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "seconds": [b - a for a, b in zip(marks, marks[1:])],
        "kl": [row["kl"] for row in rows],
        "reward": [row["proxy"] for row in rows],
        "length": [row["length"] for row in rows],
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
