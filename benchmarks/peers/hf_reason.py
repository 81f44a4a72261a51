"""transformers.generate's side of benchmarks/self_consistency.py; one JSON argument, the answer as the last line."""

from __future__ import annotations

import collections
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(job: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    prompts = json.loads(Path(job["prompts"]).read_text(encoding="utf-8"))[: job["questions"]]
    paths, new, batch = job["paths"], job["tokens"], job["batch"]

    def sample(part: list[list[int]], paths: int, new: int) -> list[list[str]]:
        """The texts of each prompt's paths."""
        width = max(map(len, part))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in part])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part])
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=True, temperature=0.7, top_k=0,
            num_return_sequences=paths, pad_token_id=0,
        )  # fmt: skip
        assert out.shape == (len(part) * paths, width + new)
        texts = tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
        return [texts[i * paths : (i + 1) * paths] for i in range(len(part))]

    with torch.inference_mode():
        sample(prompts[:1], 2, 4)
        began = time.perf_counter()
        for start in range(0, len(prompts), batch):
            for texts in sample(prompts[start : start + batch], paths, new):
                found = [re.findall(r"-?\d+\.?\d*", t.split("The answer is")[-1].replace(",", "")) for t in texts]
                collections.Counter(numbers[0] for numbers in found if numbers).most_common(1)
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "tokens": len(prompts) * paths * new}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
