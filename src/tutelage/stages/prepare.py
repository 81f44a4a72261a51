"""Turn text into memory-mapped token shards for training and validation."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Literal

from pydantic import Field

from tutelage.core.config import StageConfig
from tutelage.core.progress import Progress
from tutelage.core.rundir import RunDir
from tutelage.model.hub import load_tokenizer
from tutelage.text.corpus import Meter
from tutelage.text.shards import write_shards
from tutelage.text.split import divide
from tutelage.text.tokenizer import encode_documents
from tutelage.train.sources import is_function, is_world, texts


class PrepareConfig(StageConfig):
    tokenizer: str
    """Run directory of `tokenizer`, or a folder that holds one."""
    data: str = "schoolroom:demo"
    """Text: a file or folder, or the embedded world."""
    documents: int = Field(100_000, ge=1)
    """At most this many documents (the embedded world is endless)."""
    validation: int = Field(400, ge=1)
    """Documents for validation from the held-out world. Of files, every 20th chapter-long stretch is held out."""
    held_out: str | None = None
    """Validation text of its own; `data` is then for training as a whole."""
    curriculum: float = Field(0.5, ge=0, le=1)
    """Share of the documents after which the world's curriculum has fully eased."""


def run(config: PrepareConfig, run: RunDir) -> dict[str, Any]:
    """Write both parts as shards; the summary counts their tokens, documents and bytes."""
    tokenizer = load_tokenizer(config.tokenizer)
    parts = _world_parts(config, run) if is_world(config.data) else _file_parts(config, run)
    out: dict[str, Any] = {}
    for name, (documents, progress) in parts.items():
        sizes: list[int] = []
        with progress:
            rows = encode_documents(tokenizer, _measured(progress.over(documents), sizes))
            info = write_shards(run.path / name, rows, tokenizer)
        out[f"{name}_tokens"] = info.tokens
        out[f"{name}_documents"] = info.documents
        out[f"{name}_bytes"] = sum(sizes)
    return out


Part = tuple[Iterable[str], Progress]


def _world_parts(config: PrepareConfig, run: RunDir) -> dict[str, Part]:
    early = int(config.documents * config.curriculum)

    def curriculum() -> Iterator[str]:
        yield from texts(config.data, "train", early, phase=0.0, stream=1)
        yield from texts(config.data, "train", config.documents - early, phase=1.0, stream=2)

    held = texts(config.data, "heldout", config.validation)
    return {
        "train": (curriculum(), Progress(f"{run.path.name} train", "documents", config.documents)),
        "validation": (held, Progress(f"{run.path.name} validation", "documents", config.validation)),
    }


def _file_parts(config: PrepareConfig, run: RunDir) -> dict[str, Part]:
    def part(name: str, side: Literal["train", "heldout"]) -> Part:
        data = config.held_out if config.held_out and side == "heldout" else config.data
        # how many documents there are is not known before they are read; files have a size at least
        meter = None if is_function(data) else Meter(data)
        read = texts(data, "all", sys.maxsize, bad=run.bad_rows, meter=meter)
        found = islice(read if config.held_out else divide(read, side, data),
                       config.documents if side == "train" else None)  # fmt: skip
        if meter is None:
            return found, Progress(f"{run.path.name} {name}", "documents")
        return found, Progress(f"{run.path.name} {name}", "MB", meter.total / 1e6, lambda: meter.done / 1e6)

    return {"train": part("train", "train"), "validation": part("validation", "heldout")}


def _measured(documents: Iterable[str], sizes: list[int]) -> Iterator[str]:
    """Pass the documents on and note their UTF-8 bytes: what bits per byte are counted against."""
    for text in documents:
        sizes.append(len(text.encode("utf-8")))
        yield text
