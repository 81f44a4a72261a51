"""Prompts of recipes/real/constitution.toml, as functions that give rows: real red-team questions and instructions."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def _folder() -> Path:
    return Path(os.environ["TUTELAGE_DATA"])


def _strings(value: Any) -> Iterator[str]:
    """Every string in nested lists and objects."""
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _strings(part)


def red_team() -> Iterator[dict[str, str]]:
    """Questions that should be declined: dangerousqa, catqa and harmfulqa, as collected by red-instruct."""
    for name in ("dangerousqa", "catqa_english", "harmfulqa"):
        for text in _strings(json.loads((_folder() / f"cai/red_instruct/{name}.json").read_text(encoding="utf-8"))):
            yield {"prompt": text}


def helpful() -> Iterator[dict[str, str]]:
    """Short harmless instructions: self-instruct's seeds."""
    for line in (_folder() / "instr/alpaca_seed/seed_tasks.jsonl").read_text(encoding="utf-8").splitlines():
        text = json.loads(line)["instruction"]
        if len(text) < 150:
            yield {"prompt": text}
