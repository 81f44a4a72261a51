"""Train a byte-level BPE tokenizer and report its fertility."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal

from pydantic import Field

from tutelage.core.atomic import write_folder
from tutelage.core.config import StageConfig
from tutelage.core.progress import Progress
from tutelage.core.records import BadRows
from tutelage.core.rundir import RunDir
from tutelage.text.split import divide
from tutelage.text.tokenizer import fertility, train_tokenizer
from tutelage.train.sources import conversations, is_world, texts


class TokenizerConfig(StageConfig):
    data: str = "schoolroom:demo"
    """Text: a file or folder, or the embedded world."""
    vocab_size: int = Field(768, ge=1)
    documents: int = Field(3000, ge=1)
    """At most this many documents."""
    style: Literal["bpe", "char"] = "bpe"
    """bpe: byte-level BPE; char: one token a character."""


def run(config: TokenizerConfig, run: RunDir) -> dict[str, Any]:
    """Read a sample, learn the vocabulary, measure it on held-out text."""
    name = run.path.name
    found = islice(_documents(config.data, "train", run.bad_rows), config.documents)
    with Progress(f"{name} reads", "documents", config.documents) as progress:
        sample = list(progress.over(found))
    if is_world(config.data):  # answers carry words (please, sorry) that documents may lack
        rows = conversations(config.data, "train", config.documents, config.seed)
        sample += [m["content"] for row in rows for m in row["messages"]]
    with Progress(f"{name} learns", "documents", len(sample)) as progress:
        tokenizer = train_tokenizer(progress.over(sample), config.vocab_size, style=config.style)
    write_folder(run.path / "tokenizer", tokenizer.save_pretrained)
    held = list(islice(_documents(config.data, "heldout", run.bad_rows), 200))
    return {"vocab_size": len(tokenizer), **fertility(tokenizer, held)}


def _documents(data: str, part: Literal["train", "heldout"], bad: BadRows) -> Iterator[str]:
    """Documents of one part: a vocabulary fitted to held-out text would flatter every measurement on it."""
    found = texts(data, part, sys.maxsize, bad=bad)
    return found if is_world(data) else divide(found, part, data)
