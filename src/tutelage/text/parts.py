"""A corpus read part by part, a part being a file: scanned, decided on, encoded, and joined to one text in file order.

What a worker makes of a part is a folder that is there whole or not at all, so a killed job goes on with those that
are; and nothing in it depends on another part, so it does not matter how many workers there are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from tutelage.core.atomic import write_folder
from tutelage.core.records import BadRows
from tutelage.text.contamination import Evaluations
from tutelage.text.corpus import Meter
from tutelage.text.duplicates import VALUES, compared, digest, signature
from tutelage.text.shards import id_dtype
from tutelage.text.split import pieces
from tutelage.text.tokenizer import encode_documents

Side = Literal["train", "validation"]
SIDES: tuple[Side, ...] = ("train", "validation")
LEFT_OUT = len(SIDES)
"""In an array of sides (0: train, 1: validation): the document is in neither."""


class Reader(Protocol):
    """Documents of a part, in order; what cannot be used goes to `bad`, and `meter` hears how far the reading is."""

    def __call__(self, *, bad: BadRows, meter: Meter | None = None) -> Iterator[str]: ...


@dataclass(frozen=True)
class Part:
    """What a worker reads at a time. `size`: bytes of the file `name`, 0 for what is no file; `side`: that of all its
    documents, None where the corpus is to be divided."""

    name: str
    read: Reader
    size: int = 0
    side: Side | None = None


@dataclass(frozen=True)
class ScanOrder:
    """What is looked for in documents. `piece`: cut those of a part without a side that are longer than two times as
    many characters (None: none); `near`: make MinHash signatures; `policy`: of rows that cannot be used."""

    evaluations: Evaluations
    piece: int | None
    near: bool
    policy: str


class Scan:
    """What is known of a part's documents (N), read from the folder that `scan` wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [N]: characters."""
        return np.load(self.folder / "lengths.npy")

    @cached_property
    def digests(self) -> np.ndarray:
        """uint64 [N, 2]: see duplicates.digest."""
        return np.load(self.folder / "digests.npy")

    @cached_property
    def hits(self) -> np.ndarray:
        """int64 [H, 2]: pairs (document, gram of the evaluation sets)."""
        return np.load(self.folder / "hits.npy")

    @cached_property
    def signatures(self) -> np.ndarray:
        """uint32 [N, 128], memory-mapped: see duplicates.signature."""
        file = self.folder / "signatures.bin"
        shape = (file.stat().st_size // (4 * VALUES), VALUES)
        return np.memmap(file, np.uint32, "r", shape=shape) if shape[0] else np.empty(shape, np.uint32)

    @cached_property
    def faults(self) -> list[str]:
        """Rows that could not be used, in words."""
        return list(json.loads((self.folder / "faults.json").read_text(encoding="utf-8")))


def documents(part: Part, piece: int | None, bad: BadRows, meter: Meter | None = None) -> Iterator[str]:
    """The part's documents as they are divided, counted and encoded: whole, or cut where they are long."""
    for text in part.read(bad=bad, meter=meter):
        if piece is None or part.side is not None:
            yield text
        else:
            yield from pieces(text, piece)


Show = Callable[[int], None]
"""Is told how many bytes of a part are read."""


def scan(order: ScanOrder, job: tuple[Part, Path], show: Show | None = None) -> Path:
    """Read a part and write what `Scan` reads to its folder, unless that is there already."""
    part, target = job
    if not target.is_dir():
        write_folder(target, partial(_scan, order, part, Meter(part.name, show) if show else None))
    return target


def _scan(order: ScanOrder, part: Part, meter: Meter | None, folder: Path) -> None:
    bad = BadRows(order.policy, shown=1 << 62)
    lengths: list[int] = []
    digests = bytearray()
    hits: list[np.ndarray] = []
    with (folder / "signatures.bin").open("wb") as signatures:
        for number, text in enumerate(documents(part, order.piece, bad, meter)):
            found = compared(text)
            lengths.append(len(text))
            digests += digest(found)
            if order.near:
                signatures.write(signature(found).tobytes())
            grams = order.evaluations.found_in(found)
            if len(grams):
                hits.append(np.stack([np.full(len(grams), number), grams], 1))
    np.save(folder / "lengths.npy", np.array(lengths, dtype=np.int64))
    np.save(folder / "digests.npy", np.frombuffer(digests, dtype="<u8").reshape(-1, 2))
    np.save(folder / "hits.npy", np.concatenate([np.empty((0, 2), np.int64), *hits]))
    (folder / "faults.json").write_text(json.dumps(bad.first, ensure_ascii=False), encoding="utf-8")


@dataclass(frozen=True)
class EncodeOrder:
    """How documents become ids; `piece` and `policy` as in the scan."""

    tokenizer: PreTrainedTokenizerBase
    piece: int | None
    policy: str


def encode(order: EncodeOrder, job: tuple[Part, Path, np.ndarray], show: Show | None = None) -> Path:
    """Write the ids of a part's documents to a folder, those of each side together, unless it is there already.
    `job`: part, folder, int8 [N] side of each document."""
    part, target, sides = job
    if not target.is_dir():
        write_folder(target, partial(_encode, order, part, sides, Meter(part.name, show) if show else None))
    return target


def _encode(order: EncodeOrder, part: Part, sides: np.ndarray, meter: Meter | None, folder: Path) -> None:
    sizes = [0 for _ in SIDES]
    lengths: list[list[int]] = [[] for _ in SIDES]

    def kept() -> Iterator[str]:
        texts = documents(part, order.piece, BadRows(order.policy), meter)
        for side, text in zip(sides.tolist(), texts, strict=True):
            if side != LEFT_OUT:
                sizes[side] += len(text.encode("utf-8"))
                yield text

    dtype = id_dtype(order.tokenizer)
    with ExitStack() as stack:
        files = [stack.enter_context((folder / f"{side}.bin").open("wb")) for side in SIDES]
        rows = encode_documents(order.tokenizer, kept())
        for side, ids in zip(sides[sides != LEFT_OUT].tolist(), rows, strict=True):
            files[side].write(np.asarray(ids, dtype=dtype).tobytes())
            lengths[side].append(len(ids))
    for name, each in zip(SIDES, lengths):
        np.save(folder / f"{name}.npy", np.array(each, dtype=np.int64))
    (folder / "bytes.json").write_text(json.dumps(dict(zip(SIDES, sizes))), encoding="utf-8")


def joined(folders: Sequence[Path], side: Side, dtype: np.dtype[Any]) -> Iterator[np.ndarray]:
    """The ids of every document of a side, in the order of the parts."""
    for folder in folders:
        with (folder / f"{side}.bin").open("rb") as file:
            for length in np.load(folder / f"{side}.npy").tolist():
                yield np.frombuffer(file.read(length * dtype.itemsize), dtype=dtype)


def utf8_bytes(folders: Sequence[Path], side: Side) -> int:
    """UTF-8 bytes of the documents of a side."""
    return sum(json.loads((folder / "bytes.json").read_text(encoding="utf-8"))[side] for folder in folders)
