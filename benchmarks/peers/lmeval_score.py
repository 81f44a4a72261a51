"""lm-eval's side of benchmarks/engine.py: its own Hugging Face backend on token ids."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import engine_task
import torch
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast


def main(job: dict[str, Any]) -> dict[str, Any]:
    words = {f"w{i}": i for i in range(engine_task.VOCAB)}
    words["</s>"] = words.pop("w0")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="</s>")), eos_token="</s>", pad_token="</s>"
    )
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).eval()
    backend = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=job["batch"], max_length=1024)
    pairs = engine_task.scoring(job["what"], job["inputs"])
    requests = [(("", str(i)), context, label) for i, (context, label) in enumerate(pairs)]
    backend._loglikelihood_tokens(requests[:1], disable_tqdm=True)
    began = time.perf_counter()
    found = backend._loglikelihood_tokens(requests, disable_tqdm=True)
    return {"seconds": time.perf_counter() - began, "scores": [logprob for logprob, _ in found]}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
