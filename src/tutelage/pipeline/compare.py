"""The same prompts through several models, judged: sampled, at a low temperature, and greedily."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tutelage.engine import LocalEngine, SamplingParams
from tutelage.model.hub import load_model
from tutelage.schoolroom.judge import gold
from tutelage.schoolroom.rows import item_from_row
from tutelage.text.chat import as_messages, encode_prompt, turn_end_id
from tutelage.train.sources import prompts

FRESH = 90_001
"""Stream seed of the prompts kept for measuring: no stage trains on it."""


def _ask(path: Path, rows: list[dict[str, Any]], chat: bool, temperature: float) -> list[str]:
    model, tokenizer = load_model(path)
    engine = LocalEngine(model, tokenizer)
    stop = (turn_end_id(tokenizer),) if chat else ()
    asked = [as_messages({"prompt": r["prompt"]}) for r in rows]  # a prompt is a string or a dialogue
    ids = [encode_prompt(tokenizer, turns if chat else " ".join(m["content"] for m in turns)) for turns in asked]
    params = SamplingParams(max_tokens=24, temperature=temperature, stop_tokens=stop, seed=1)
    return [c.text.strip() for c in engine.rollout(ids, params)]


def answers(models: Mapping[str, Path], data: str, n: int = 10) -> list[dict[str, Any]]:
    """`n` held-out prompts with every model's greedy answer; "base" continues the bare text, the others chat."""
    rows = prompts(data, "heldout", n, FRESH)
    out = [{"prompt": r["prompt"], "gold_answer": item_from_row(r).good} for r in rows]
    for label, path in models.items():
        for row, text in zip(out, _ask(path, rows, label != "base", 0.0)):
            row[label] = text
    return out


def measure(models: Mapping[str, Path], data: str, n: int) -> dict[str, float]:
    """Gold and correctness apart from style, per model and temperature, on `n` fresh held-out prompts."""
    rows = prompts(data, "heldout", n, FRESH + 1)
    out: dict[str, float] = {}
    for label, path in models.items():
        if label == "base":
            continue
        for name, temperature in (("sampled", 1.0), ("t0.3", 0.3), ("greedy", 0.0)):
            judged = [gold(item_from_row(r), text) for r, text in zip(rows, _ask(path, rows, True, temperature))]
            out[f"{label}_gold_{name}"] = sum(g.total for g in judged) / n
            out[f"{label}_correct_{name}"] = sum(g.correct for g in judged) / n
    return out
