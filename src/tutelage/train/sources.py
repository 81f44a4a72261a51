"""Where text, rows and prompts come from: a file or folder, or the embedded world as `schoolroom:demo`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from tutelage.core.errors import DataError
from tutelage.schoolroom import World
from tutelage.schoolroom.rows import prompt_rows, sft_rows
from tutelage.text.corpus import read_rows, read_texts


def is_world(data: str) -> bool:
    return data.startswith("schoolroom:")


def world(data: str, seed: int = 0) -> World:
    """The world named by `schoolroom:demo` or `schoolroom:full`."""
    return World(seed=seed, families=data.split(":", 1)[1])


def texts(data: str, split: str, limit: int, phase: float = 0.0, stream: int = 0) -> Iterator[str]:
    """At most `limit` documents of `data`."""
    if is_world(data):
        yield from islice(world(data).documents(split, stream=stream, phase=phase), limit)
    else:
        # A novel is one file: its paragraphs are the units that the held-out rule divides.
        yield from islice(read_texts(data, document="paragraph"), limit)


def conversations(data: str, split: str, limit: int, seed: int) -> list[dict[str, Any]]:
    """Rows for SFT."""
    if is_world(data):
        return list(sft_rows(world(data), limit, split, seed))
    return nonempty([row for _, row in islice(read_rows(data), limit)], data)


def prompts(data: str, split: str, limit: int, seed: int) -> list[dict[str, Any]]:
    """Rows with "prompt" and the columns that reach the reward."""
    if is_world(data):
        return list(prompt_rows(world(data), limit, split, seed))
    rows = [row for _, row in islice(read_rows(data), limit)]
    for i, row in enumerate(rows):
        if "prompt" not in row:
            raise DataError(f"{data}: row {i + 1} has no 'prompt'; expected {{\"prompt\": ...}}")
    return nonempty(rows, data)


def nonempty(rows: list[dict[str, Any]], data: str) -> list[dict[str, Any]]:
    if not rows:
        raise DataError(f"{data}: no rows; expected at least one")
    return rows
