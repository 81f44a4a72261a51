"""What becomes of every document of a scanned corpus: training, validation, or left out, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from tutelage.core.errors import DataError
from tutelage.text.contamination import Evaluations
from tutelage.text.duplicates import first_equal, first_near
from tutelage.text.parts import LEFT_OUT, SIDES, Part, Scan
from tutelage.text.split import Division, held_by_hash

TRAIN, VALIDATION = (SIDES.index(side) for side in SIDES)


@dataclass(frozen=True)
class Rules:
    """`division`: of the parts without a side, None: by hash; `limit`: training documents at most."""

    division: Division | None
    duplicates: Literal["keep", "exact", "near"]
    similarity: float
    remove_contaminated: bool
    limit: int


@dataclass
class Decision:
    """`sides`: int8 [n] for each part: 0 train, 1 validation, 2 left out; `counts`: documents by what became of them;
    `contamination`: a row of numbers for each evaluation set."""

    sides: list[np.ndarray]
    counts: dict[str, int]
    contamination: dict[str, dict[str, Any]] = field(default_factory=dict)


def decide(
    parts: Sequence[Part], scans: Sequence[Scan], evaluations: Evaluations, rules: Rules, where: str
) -> Decision:
    """Divide first, as the stage `tokenizer` does; then leave out duplicates (of all documents, so that none stands on
    both sides), then what evaluation sets share with the training side, then what is over the limit.

    Everything goes by the documents and their order. DataError, naming `where` they are from, when a side is empty.
    """
    ends = np.cumsum([len(scan.lengths) for scan in scans])
    sides = _divided(parts, scans, rules.division)
    counts = {"documents": len(sides)}
    if rules.duplicates != "keep":
        counts |= _leave_out_duplicates(sides, scans, rules)
    starts = ends - [len(scan.lengths) for scan in scans]
    hits = np.concatenate([scan.hits + [start, 0] for scan, start in zip(scans, starts)])
    hits = hits[sides[hits[:, 0]] == TRAIN]
    counted, table = evaluations.tally(hits)
    dirty = np.unique(hits[counted[hits[:, 1]], 0])
    if evaluations.names:
        counts |= {"contaminated": len(dirty), "contaminated_removed": len(dirty) * rules.remove_contaminated}
    if rules.remove_contaminated:
        sides[dirty] = LEFT_OUT
    over = np.flatnonzero(sides == TRAIN)[rules.limit :]
    sides[over] = LEFT_OUT
    counts["over_limit"] = len(over)
    for side, name in ((TRAIN, "training"), (VALIDATION, "validation")):
        if not (sides == side).any():
            raise DataError(
                f"{where}: no document is left for {name} ({', '.join(f'{k} {v}' for k, v in counts.items())}); give "
                "more text, held_out=FILE, or another split="
            )
    return Decision(np.split(sides, ends[:-1]), counts, table)


def _divided(parts: Sequence[Part], scans: Sequence[Scan], division: Division | None) -> np.ndarray:
    """int8 [N]: training or validation, for all parts together."""
    open_parts = [scan for part, scan in zip(parts, scans) if part.side is None]
    held = iter(division.held(length for scan in open_parts for length in scan.lengths.tolist()) if division else ())
    found: list[int] = []
    for part, scan in zip(parts, scans):
        if part.side is not None:
            found += [SIDES.index(part.side)] * len(scan.lengths)
        elif division:
            found += [VALIDATION if next(held) else TRAIN for _ in scan.lengths]
        else:
            found += [VALIDATION if held_by_hash(key.tobytes()) else TRAIN for key in scan.digests]
    return np.array(found, dtype=np.int8)


def _leave_out_duplicates(sides: np.ndarray, scans: Sequence[Scan], rules: Rules) -> dict[str, int]:
    places = np.arange(len(sides))
    unique = first_equal(np.concatenate([scan.digests for scan in scans])) == places
    counts = {"exact_duplicates": int((~unique).sum())}
    sides[~unique] = LEFT_OUT
    if rules.duplicates == "near":
        near = first_near([scan.signatures for scan in scans], unique, rules.similarity) != places
        counts["near_duplicates"] = int(near.sum())
        sides[near] = LEFT_OUT
    return counts
