"""Our side of benchmarks/self_consistency.py; one JSON argument, the answer as the last line."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tutelage.engine import LocalEngine, Output, SamplingParams
from tutelage.icl.reasoning import ReasonSettings, read_problems, reason


class Unending(LocalEngine):
    """Paths of full length: neither a token nor a text ends one, so that both sides make the same number of tokens."""

    eos_tokens = ()  # type: ignore[assignment]

    def generate(self, prompts: Any, params: Any = None) -> list[Output]:
        assert isinstance(params, SamplingParams) or params
        each = [params] if isinstance(params, SamplingParams) else params
        endless = [replace(p, stop=()) for p in each]
        return super().generate(prompts, endless * len(prompts) if len(endless) == 1 else endless)


def main(job: dict[str, Any]) -> dict[str, Any]:
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).eval()
    engine = Unending(model, AutoTokenizer.from_pretrained(job["model"]))
    problems = read_problems(job["data"], job["questions"])
    settings = ReasonSettings(paths=job["paths"], max_tokens=job["tokens"])
    reason("self_consistency", engine, problems[:1], replace(settings, paths=2, max_tokens=4))  # the probe
    began = time.perf_counter()
    result = reason("self_consistency", engine, problems, settings)
    seconds = time.perf_counter() - began
    given = json.loads(Path(job["prompts"]).read_text(encoding="utf-8"))
    assert result.prompt_tokens == sum(map(len, given)), "the sides have different prompts"
    assert len(result.curve) == job["paths"]
    return {"seconds": seconds, "tokens": result.generated_tokens, "prompt_tokens": result.prompt_tokens}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
