"""Our side of benchmarks/engine.py; one JSON argument, the answer as the last line."""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

import engine_task
import torch
from transformers import AutoModelForCausalLM

from tutelage.engine import LocalEngine, SamplingParams


def make(model: str, **options: Any) -> LocalEngine:
    """An engine on token ids: the model has no tokenizer and never ends by itself."""
    return LocalEngine(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval(), None, **options)


def score(job: dict[str, Any]) -> dict[str, Any]:
    engine, pairs = make(job["model"]), engine_task.scoring(job["what"], job["inputs"])
    engine.score(pairs[:8])  # the probe, and the allocator's first pages
    began = time.perf_counter()
    found = engine.score(pairs)
    return {"seconds": time.perf_counter() - began, "scores": [s.logprob for s in found]}


def generate(job: dict[str, Any]) -> dict[str, Any]:
    engine = make(job["model"], compiled=job.get("compiled", False))
    prompts, lengths, n = engine_task.generating(job["what"], job["share"])
    params = [SamplingParams(max_tokens=length, n=n, seed=i) for i, length in enumerate(lengths)]
    began = time.perf_counter()
    for count in (1, 2):  # the probe, the allocator's first pages, and both shapes that are compiled
        engine.generate(prompts[:count], [SamplingParams(max_tokens=4, n=n)] * len(prompts[:count]))
    first = time.perf_counter() - began
    times = []
    for _ in range(1 if job["what"] == "generate" else 5):
        began = time.perf_counter()
        outputs = engine.generate(prompts, params)
        times.append(time.perf_counter() - began)
    tokens = sum(len(c.tokens) for o in outputs for c in o.completions)
    assert tokens == n * sum(lengths), (tokens, sum(lengths))
    return {"seconds": sorted(times)[len(times) // 2], "tokens": tokens, "first_seconds": first}


def memory(job: dict[str, Any]) -> dict[str, Any]:
    import random

    kv = 64 << 20
    engine = make(job["model"], kv_bytes=kv)
    rng = random.Random(2)
    prompts = [engine_task.ids(rng, rng.randint(8, 64)) for _ in range(job["requests"])]
    params = [SamplingParams(max_tokens=rng.randint(4, 32), seed=i) for i in range(job["requests"])]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    outputs = engine.generate(prompts, params)
    assert all(len(o.completions[0].tokens) == p.max_tokens for o, p in zip(outputs, params, strict=True))
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before, "kv_bytes": kv}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    side = {"score": score, "retrieved": score, "memory": memory}.get(given["what"], generate)
    print(json.dumps(side(given)))
