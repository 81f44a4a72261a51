"""Turn text into memory-mapped token shards for training and validation."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from tutelage.core.config import StageConfig
from tutelage.core.parallel import in_order
from tutelage.core.progress import Progress
from tutelage.core.rundir import PARTS, RunDir
from tutelage.icl.tasks import load_task, rows_of
from tutelage.model.hub import load_tokenizer
from tutelage.text.contamination import Evaluations
from tutelage.text.corpus import read_texts
from tutelage.text.decide import Decision, Rules, decide
from tutelage.text.hub_data import PREFIX, hub_parts
from tutelage.text.parts import (
    SIDES,
    EncodeOrder,
    Part,
    Scan,
    ScanOrder,
    Side,
    encode,
    joined,
    scan,
    utf8_bytes,
)
from tutelage.text.shards import ShardInfo, id_dtype, write_shards
from tutelage.text.split import Division, division
from tutelage.text.tokenizer import encode_documents
from tutelage.train.sources import is_world, text_parts, texts


class PrepareConfig(StageConfig):
    tokenizer: str
    """Run directory of `tokenizer`, or a folder that holds one."""
    data: str = "schoolroom:demo"
    """Text: a file or folder, the embedded world, file.py:function, or a streamed hub set, hf:name[:config][:split]."""
    documents: int = Field(100_000, ge=1)
    """At most this many documents for training (the embedded world is endless)."""
    validation: int = Field(400, ge=1)
    """Documents for validation from the held-out world. Of files, every 20th chapter-long stretch is held out."""
    held_out: str | None = None
    """Validation text of its own; `data` is then for training as a whole."""
    split: Literal["stretches", "hash"] = "stretches"
    """What is held out without held_out=: every 20th chapter-long stretch (books), or one document in 20 by a hash of
    its words (documents that have nothing to do with one another)."""
    duplicates: Literal["keep", "exact", "near"] = "keep"
    """Leave out documents with the words of an earlier one (exact), or nearly so (near: MinHash, see similarity)."""
    similarity: float = Field(0.8, gt=0, lt=1)
    """Jaccard similarity of two documents' word 5-grams from which they are near-duplicates."""
    evaluation: list[str] = []
    """Evaluation sets to look for in the training text: files, hf: sets, or descriptions of tasks (task.toml)."""
    ngram: int = Field(13, ge=2)
    """Words in a row that a training document and an example must share for the document to be contaminated."""
    contaminated: Literal["keep", "remove"] = "keep"
    """Only count contaminated documents, or leave them out."""
    workers: int = Field(1, ge=1)
    """Processes that share the files; the result is the same for any number."""
    curriculum: float = Field(0.5, ge=0, le=1)
    """Share of the documents after which the world's curriculum has fully eased."""

    @model_validator(mode="after")
    def _of_text(self) -> PrepareConfig:
        fields = type(self).model_fields
        asked = [key for key in ("split", "duplicates", "evaluation") if getattr(self, key) != fields[key].default]
        if asked and is_world(self.data):
            raise ValueError(f"{asked[0]}= is for text from outside; the embedded world {self.data} divides itself")
        return self

    def named_files(self) -> dict[str, str]:
        """The evaluation sets and hub sets that lie on this machine."""
        named = {"data": self.data, **{f"evaluation.{i}": name for i, name in enumerate(self.evaluation)}}
        return {key: file for key, name in named.items() if (file := _local(name))}


def _local(name: str) -> str | None:
    if name.startswith(PREFIX):
        name = hub_parts(name, "")[0]
        return name if Path(name).exists() else None
    return None


def run(config: PrepareConfig, run: RunDir) -> dict[str, Any]:
    """Write both sides as shards; the summary counts their tokens, documents and bytes, and what was left out."""
    return _world(config, run) if is_world(config.data) else _files(config, run)


def _summary(side: str, info: ShardInfo, size: int) -> dict[str, int]:
    return {f"{side}_tokens": info.tokens, f"{side}_documents": info.documents, f"{side}_bytes": size}


def _world(config: PrepareConfig, run: RunDir) -> dict[str, Any]:
    tokenizer = load_tokenizer(config.tokenizer)
    early = int(config.documents * config.curriculum)
    train = chain(
        texts(config.data, "train", early, phase=0.0, stream=1),
        texts(config.data, "train", config.documents - early, phase=1.0, stream=2),
    )
    held = texts(config.data, "heldout", config.validation)
    out: dict[str, Any] = {}
    sources: tuple[tuple[Side, Iterable[str], int], ...] = (
        ("train", train, config.documents), ("validation", held, config.validation),
    )  # fmt: skip
    for side, found, total in sources:
        sizes: list[int] = []
        with Progress(f"{run.path.name} {side}", "documents", total) as progress:
            rows = encode_documents(tokenizer, _measured(progress.over(found), sizes))
            out |= _summary(side, write_shards(run.path / side, rows, tokenizer), sum(sizes))
    return out


def _measured(documents: Iterable[str], sizes: list[int]) -> Iterator[str]:
    """Pass the documents on and note their UTF-8 bytes: what bits per byte are counted against."""
    for text in documents:
        sizes.append(len(text.encode("utf-8")))
        yield text


def _files(config: PrepareConfig, run: RunDir) -> dict[str, Any]:
    """Text from outside: its parts are scanned, every document is decided on, and the kept ones are encoded."""
    if config.held_out:
        parts = [*text_parts(config.held_out, "validation"), *text_parts(config.data, "train")]
    else:
        parts = text_parts(config.data, None)
    by = _division(config, run, parts)
    piece = by.piece if by else None
    decision = _decided(config, run, parts, by)
    tokenizer = load_tokenizer(config.tokenizer)
    order = EncodeOrder(tokenizer, piece, run.bad_rows.policy)
    encoded = _each(config, run, "encode", encode, order, list(zip(parts, decision.sides)))
    out: dict[str, Any] = {}
    for side in SIDES:
        rows = joined(encoded, side, id_dtype(tokenizer))
        out |= _summary(side, write_shards(run.path / side, rows, tokenizer), utf8_bytes(encoded, side))
    found = {**decision.counts, **({"contamination": decision.contamination} if config.evaluation else {})}
    run.note(prepared=found)
    shutil.rmtree(run.path / PARTS)
    return out | found


def _division(config: PrepareConfig, run: RunDir, parts: Sequence[Part]) -> Division | None:
    """The rule by which the corpus is divided; None where its parts have sides, and for split=hash."""
    if config.held_out or config.split == "hash":
        return None
    return division(chain.from_iterable(part.read(bad=run.bad_rows) for part in parts), config.data)


def _decided(config: PrepareConfig, run: RunDir, parts: Sequence[Part], by: Division | None) -> Decision:
    sets = Evaluations.of({name: _examples(name) for name in config.evaluation}, config.ngram)
    order = ScanOrder(sets, by.piece if by else None, config.duplicates == "near", run.bad_rows.policy)
    scans = [Scan(folder) for folder in _each(config, run, "scan", scan, order, [(part,) for part in parts])]
    for fault in chain.from_iterable(one.faults for one in scans):
        run.bad_rows(fault)
    rules = Rules(by, config.duplicates, config.similarity, config.contaminated == "remove", config.documents)
    return decide(parts, scans, sets, rules, config.data)


def _each(
    config: PrepareConfig, run: RunDir, name: str, function: Callable[..., Path], order: Any,
    jobs: Sequence[tuple[Any, ...]],
) -> list[Path]:  # fmt: skip
    """The folder that `function` makes of every job (part, ...), by the workers, in order."""
    sizes = [job[0].size for job in jobs]
    known, done = all(sizes), 0
    out: list[Path] = []
    ordered = [(part, run.path / PARTS / name / f"{n:05d}", *more) for n, (part, *more) in enumerate(jobs)]
    unit, total = ("MB", sum(sizes) / 1e6) if known else ("parts", len(jobs))
    with Progress(f"{run.path.name} {name}", unit, total) as progress:
        if known and config.workers == 1:  # here the way through a file can be seen
            function = partial(function, show=lambda read: progress.at((done + read) / 1e6))
        for size, folder in zip(sizes, in_order(function, order, ordered, config.workers, __name__)):
            out.append(folder)
            done += size
            progress.at(done / 1e6 if known else len(out))
    return out


def _examples(source: str) -> Iterator[list[str]]:
    """The texts of every example of an evaluation set: a document, or all strings of a row."""
    if source.endswith(".txt"):
        yield from ([text] for text in read_texts(source, document="paragraph"))
        return
    task = source.endswith(".toml") or source.startswith("schoolroom:")
    for _, row in rows_of(load_task(source).test if task else source):
        yield list(_strings(row))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)
