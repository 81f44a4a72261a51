"""transformers.generate's side of benchmarks/engine.py; one JSON argument, the answer as the last line."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import engine_task
import torch
from transformers import AutoModelForCausalLM


def batches(model: Any, order: list[int], prompts: list[list[int]], lengths: list[int], n: int) -> float:
    """Seconds to sample all prompts, 32 at a time, left-padded; a batch runs as long as its longest request."""
    began = time.perf_counter()
    for start in range(0, len(order), 32):
        part = order[start : start + 32]
        width = max(len(prompts[i]) for i in part)
        ids = torch.tensor([[0] * (width - len(prompts[i])) + prompts[i] for i in part])
        mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in part])
        new = max(lengths[i] for i in part)
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=True, top_k=0,
            num_return_sequences=n, pad_token_id=0,
        )  # fmt: skip
        assert out.shape == (len(part) * n, width + new)
    return time.perf_counter() - began


def main(job: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    prompts, lengths, n = engine_task.generating(job["what"], job["share"])
    with torch.inference_mode():
        batches(model, [0], prompts[:1], [4], n)
        order = list(range(len(prompts)))
        if job["what"] == "generate":
            ordered = sorted(order, key=lambda i: lengths[i])
            found = {"seconds": batches(model, order, prompts, lengths, n)}
            return {**found, "sorted": batches(model, ordered, prompts, lengths, n)}
        times = sorted(batches(model, order, prompts, lengths, n) for _ in range(5))
    return {"seconds": times[2]}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
