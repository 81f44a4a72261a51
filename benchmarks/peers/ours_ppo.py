"""Our side: `tutelage.run("ppo")` on one job, watched from outside. Argument: the job as JSON; answer: last line."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import tutelage
from tutelage.train import rl


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Run PPO; returns seconds between updates, KL of each, and the answers of each with their prompts."""
    marks: list[float] = []
    answers: list[list[tuple[str, str]]] = []
    sample = rl.sample_episodes

    def watched(*args: Any, **kwargs: Any) -> Any:
        marks.append(time.perf_counter())
        episodes = sample(*args, **kwargs)
        answers.append([(row["prompt"], text) for row, text in zip(episodes.rows, episodes.texts)])
        return episodes

    rl.sample_episodes = watched  # type: ignore[assignment]
    out = tutelage.run(
        "ppo", model=job["sft"], reward=job["reward"], data=job["prompts"], updates=job["updates"], batch_size=64,
        minibatches=1, epochs=4, max_tokens=16, kl_coef=job["kl_coef"], temperature=1.0, missing_eos_penalty=1.0,
        ptx_coef=0.0, precision=job["precision"], compiled=job["compiled"], save_every=0,
        sample_every=10**6, seed=job["seed"],
        optimizer={"name": "adamw", "lr": job["lr"], "decay": 0.0, "warmup": 0.0, "betas": [0.9, 0.999], "eps": 1e-8},
        out=job["out"],
    )  # fmt: skip
    marks.append(time.perf_counter())
    rows = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "seconds": [b - a for a, b in zip(marks, marks[1:])],
        "kl": [row["kl"] for row in rows],
        "score": [row["proxy"] for row in rows],
        "length": [row["length"] for row in rows],
        "answers": answers,
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
