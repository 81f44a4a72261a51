"""Our side of benchmarks/icl_sst2.py: the toolkit itself, from the data's rows to predictions."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tutelage.engine import LocalEngine
from tutelage.icl.prompts import Prompter
from tutelage.icl.scoring import Job, score_jobs
from tutelage.icl.tasks import load_task


def main(job: dict[str, Any]) -> dict[str, Any]:
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).eval()
    engine = LocalEngine(model, AutoTokenizer.from_pretrained(job["model"]))
    task = load_task("sst2", job["data"])
    demos, queries = task.examples("train")[:16], task.examples("test")
    engine.score([("a film", "good")])  # the probe, and the allocator's first pages
    before = engine.counts.computed
    began = time.perf_counter()
    found = score_jobs(engine, [Job(Prompter(task.format), [demos], queries, [(0, q) for q in range(len(queries))])])[0]
    seconds = time.perf_counter() - began
    scores = [float(x) for row in found.logprob for x in row]
    return {"seconds": seconds, "scores": scores, "tokens": engine.counts.computed - before}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
