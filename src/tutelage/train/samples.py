"""Continuations of the same few prompts, written beside the metrics: progress that a person can read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tutelage.engine import LocalEngine, SamplingParams
from tutelage.engine.requests import Prompt


def sampler(
    engine: LocalEngine, prompts: Sequence[Prompt], max_tokens: int = 32, temperature: float = 0.0, seed: int = 0
) -> Callable[[], list[dict[str, Any]]]:
    """A callable for the loop's `sample`: rows {"prompt", "response"} of the engine's live weights, the same draws
    at every call. A prompt is a text or token ids to continue, or messages to answer."""
    shown = [engine.text_of(p) if p and isinstance(p[0], int) else p for p in prompts]  # type: ignore[arg-type]

    def sample() -> list[dict[str, Any]]:
        params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
        outputs = engine.generate(list(prompts), params)
        return [{"prompt": p, "response": o.error or o.text} for p, o in zip(shown, outputs)]

    return sample
