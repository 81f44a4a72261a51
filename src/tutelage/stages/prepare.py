"""Turn text into memory-mapped token shards for training and validation."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from tutelage.core.config import StageConfig
from tutelage.core.rundir import RunDir
from tutelage.text.shards import write_shards
from tutelage.text.split import divide
from tutelage.text.tokenizer import encode_documents
from tutelage.train.sources import is_world, texts


class PrepareConfig(StageConfig):
    tokenizer: str
    """Run directory of `tokenizer`, or a folder that holds one."""
    data: str = "schoolroom:demo"
    """Text: a file or folder, or the embedded world."""
    documents: int = 100_000
    """At most this many documents (the embedded world is endless)."""
    validation: int = 400
    """Documents for validation from the held-out world. Of files, every 20th chapter-long stretch is held out."""
    held_out: str | None = None
    """Validation text of its own; `data` is then for training as a whole."""
    curriculum: float = 0.5
    """Share of the documents after which the world's curriculum has fully eased."""


def run(config: PrepareConfig, run: RunDir) -> dict[str, Any]:
    folder = Path(config.tokenizer)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder)
    if is_world(config.data):
        early = int(config.documents * config.curriculum)

        def curriculum() -> Iterator[str]:
            yield from texts(config.data, "train", early, phase=0.0, stream=1)
            yield from texts(config.data, "train", config.documents - early, phase=1.0, stream=2)

        train, held = curriculum(), texts(config.data, "heldout", config.validation)
    elif config.held_out:
        train, held = (texts(d, "all", n, bad=run.bad_rows) for d, n in
                       ((config.data, config.documents), (config.held_out, sys.maxsize)))  # fmt: skip
    else:
        read = partial(texts, config.data, "all", sys.maxsize, bad=run.bad_rows)
        train, held = islice(divide(read(), "train"), config.documents), divide(read(), "heldout")
    out: dict[str, Any] = {}
    for name, documents in (("train", train), ("validation", held)):
        sizes: list[int] = []
        info = write_shards(run.path / name, encode_documents(tokenizer, _measured(documents, sizes)), tokenizer)
        out[f"{name}_tokens"] = info.tokens
        out[f"{name}_documents"] = info.documents
        out[f"{name}_bytes"] = sum(sizes)
    return out


def _measured(documents: Iterable[str], sizes: list[int]) -> Iterator[str]:
    """Pass the documents on and note their UTF-8 bytes: what bits per byte are counted against."""
    for text in documents:
        sizes.append(len(text.encode("utf-8")))
        yield text
