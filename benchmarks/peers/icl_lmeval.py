"""lm-eval's side of benchmarks/icl_sst2.py: its Hugging Face backend on the same texts."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(job: dict[str, Any]) -> dict[str, Any]:
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    backend = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=job["batch"], max_length=4096)
    pairs = json.loads(Path(job["pairs"]).read_text(encoding="utf-8"))[: 2 * job["inputs"]]
    requests = [Instance("loglikelihood", {}, tuple(pair), i) for i, pair in enumerate(pairs)]
    tokens = 0
    plain = backend._model_call

    def counted(inps: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal tokens
        tokens += inps.numel()
        return plain(inps, *args, **kwargs)

    backend.loglikelihood(requests[:2], disable_tqdm=True)
    backend._model_call = counted
    began = time.perf_counter()
    found = backend.loglikelihood(requests, disable_tqdm=True)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "scores": [logprob for logprob, _ in found], "tokens": tokens}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
