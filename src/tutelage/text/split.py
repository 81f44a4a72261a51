"""Division of a corpus into training and held-out text by whole stretches of a chapter's length.

Single paragraphs held out among their neighbours would leak: names, quarrels and phrases of the paragraph before and
after have been trained on. A stretch leaks at its two borders only. The rule depends on the text alone, not on a seed,
so every stage that reads the corpus (tokenizer, prepare) divides it alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from tutelage.core.errors import DataError

STRETCH = 20_000
"""Characters of one stretch, about a chapter."""
EVERY = 20
"""One stretch in this many is held out."""
_SMALL = STRETCH * 200
_LEAST_PIECE = 2_000


def pieces(document: str, size: int) -> Iterator[str]:
    """The document, or, if it is longer than two stretches, pieces of about `size` characters cut at line ends."""
    if len(document) <= 2 * size:
        yield document
        return
    start = 0
    while start < len(document):
        end = len(document)
        if end - start > 2 * size:
            newline = document.find("\n", start + size)
            end = newline + 1 if newline >= 0 else end
        piece = document[start:end].strip()
        if piece:
            yield piece
        start = end


def stretches(documents: Iterable[str], size: int = STRETCH) -> Iterator[list[str]]:
    """Runs of consecutive documents, each of at least `size` characters (the last perhaps fewer)."""
    held: list[str] = []
    count = 0
    for document in documents:
        for piece in pieces(document, max(size, _LEAST_PIECE)):
            held.append(piece)
            count += len(piece)
            if count >= size:
                yield held
                held, count = [], 0
    if held:
        yield held


def _gather(documents: Iterator[str], limit: int) -> tuple[list[str], int]:
    """Documents from the front until they have `limit` characters or more, and how many characters they have."""
    out: list[str] = []
    count = 0
    for document in documents:
        out.append(document)
        count += len(document)
        if count >= limit:
            break
    return out, count


@dataclass(frozen=True)
class Division:
    """The rule of one corpus: of its stretches of `size` characters the last of every `every` is held out."""

    size: int
    every: int

    @property
    def piece(self) -> int:
        """Documents longer than two of these are cut."""
        return max(self.size, _LEAST_PIECE)

    def is_held(self, stretch: int) -> bool:
        """Whether the stretch of this number is held out."""
        return stretch % self.every == self.every - 1

    def held(self, lengths: Iterable[int]) -> list[bool]:
        """Which of the corpus's pieces of these many characters, in order, are held out."""
        out: list[bool] = []
        stretch = count = 0
        for length in lengths:
            out.append(self.is_held(stretch))
            count += length
            if count >= self.size:
                stretch, count = stretch + 1, 0
        return out


def division(documents: Iterable[str], where: str = "corpus") -> Division:
    """The rule of a corpus, of which the first 4 million characters are read (see `divide`, also for errors)."""
    return _rule(*_gather(iter(documents), _SMALL), where)


def _rule(front: list[str], count: int, where: str) -> Division:
    if count >= _SMALL:
        return Division(STRETCH, EVERY)
    size = max(1, count // 200)
    found = sum(1 for _ in stretches(front, size))
    if not found:
        raise DataError(f"{where}: no text; expected at least one document that is not blank")
    if found < 2:
        raise DataError(
            f"{where}: {len(front)} document(s) in one piece: nothing can be held out, expected several "
            "(a blank line ends a paragraph, a row is a document)"
        )
    return Division(size, min(EVERY, found))


def divide(documents: Iterable[str], part: Literal["train", "heldout"], where: str = "corpus") -> Iterator[str]:
    """The documents of one part, in order; the two parts are disjoint and together are everything.

    Every 20th stretch of 20,000 characters is held out; of a corpus under 4 million characters the stretches are
    shorter, so that ten of 200 are, and of one with fewer than 20 pieces it is the last. Documents longer than two
    stretches (and 4,000 characters) are cut at line ends. DataError, naming `where` they are from, for no document and
    for one piece alone, which cannot be divided.
    """
    source = iter(documents)
    front, count = _gather(source, _SMALL)
    rule = _rule(front, count, where)
    for number, run in enumerate(stretches((d for group in (front, source) for d in group), rule.size)):
        if rule.is_held(number) == (part == "heldout"):
            yield from run


def held_by_hash(digest: bytes) -> bool:
    """Whether a document is held out by the hash of its words (text/duplicates.py): one in 20, whatever stands around
    it, so that the sides stay when files are added."""
    return int.from_bytes(digest[:8], "little") % EVERY == 0
