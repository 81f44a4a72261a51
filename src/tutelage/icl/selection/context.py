"""What a selector is given, what it gives back, and the checks that all of them share."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from tutelage.core.config import build
from tutelage.core.errors import ConfigError, DataError
from tutelage.icl.examples import Example
from tutelage.icl.prompts import Format
from tutelage.icl.scoring import Scorer

log = logging.getLogger("tutelage")

Selection = list[list[int]] | list[list[Example]]
"""Per query the chosen indices into the pool, most relevant first; or the demonstrations themselves (SG-ICL)."""


class Options(BaseModel):
    """Base of a method's options: unknown keys are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)


OptionsT = TypeVar("OptionsT", bound=Options)


@dataclass(frozen=True)
class SelectionContext:
    """What methods need beside the examples; a method that misses something says so in a ConfigError."""

    engine: Any = None
    """A LocalEngine or RemoteEngine."""
    format: Format | None = None
    scorer: Scorer | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """The method's own options by name; see each method's `...Options` class."""

    def read(self, kind: type[OptionsT], method: str) -> OptionsT:
        """The method's options; ConfigError names a wrong key and the nearest right one."""
        return build(kind, self.options, f"select={method}")

    def need_engine(self, method: str) -> Any:
        """The engine; ConfigError where there is none."""
        if self.engine is None:
            raise ConfigError(f"select={method} asks a language model; give SelectionContext an engine=")
        return self.engine

    def need_local(self, what: str) -> Any:
        """The engine, if its model is in this process; ConfigError otherwise."""
        if self.engine is None or not hasattr(self.engine, "tokenizer"):
            raise ConfigError(
                f"{what} needs a local model, and this engine is {self.engine!r}; load a model folder, or choose "
                "by=bm25, by=tfidf or by=sentence"
            )
        return self.engine

    def need_format(self, method: str) -> Format:
        """The templates; ConfigError where there are none."""
        if self.format is None:
            raise ConfigError(f"select={method} renders prompts; give SelectionContext a format=")
        return self.format

    def need_scorer(self, method: str) -> Scorer:
        """The scorer; ConfigError where there is none."""
        if self.scorer is None:
            raise ConfigError(f"select={method} compares label probabilities; give SelectionContext a scorer=")
        return self.scorer


def demonstrations(pool: Sequence[Example], selection: Selection) -> list[list[Example]]:
    """The demonstrations of each query, whether they were chosen from the pool or generated."""
    return [[pool[one] if isinstance(one, int) else one for one in chosen] for chosen in selection]


def check_texts(pool: Sequence[Example], queries: Sequence[Example], method: str) -> None:
    """DataError for an example that a method must read and that has no text."""
    for name, examples in (("pool", pool), ("queries", queries)):
        for i, example in enumerate(examples):
            if not example.text.strip():
                raise DataError(f"{name}[{i}]: the text is empty, and select={method} reads it; leave the example out")


def check_shots(shots: int) -> None:
    """ConfigError for a negative number of demonstrations."""
    if shots < 0:
        raise ConfigError(f"shots must be at least 0, got {shots}")


def first_copies(pool: Sequence[Example]) -> list[int]:
    """Indices of the pool's examples without later ones of the same text: a second copy would waste a place."""
    seen: dict[str, int] = {}
    for i, example in enumerate(pool):
        seen.setdefault(example.text, i)
    return list(seen.values())


def shared_candidates(pool: Sequence[Example], queries: Sequence[Example], shots: int, method: str) -> list[int]:
    """Indices that may stand before every query: first copies only, and no query's own text (it holds the answer).

    DataError when fewer than ``shots`` are left.
    """
    check_shots(shots)
    asked = {query.text for query in queries}
    copies = first_copies(pool)
    left = [i for i in copies if pool[i].text not in asked]
    if len(left) < shots:
        raise DataError(
            f"select={method}: shots={shots}, and the pool of {len(pool)} has {len(left)} to choose from "
            f"({len(copies)} distinct texts, {len(copies) - len(left)} of them queries); lower shots= or enlarge it"
        )
    return left


def own_places(pool: Sequence[Example], queries: Sequence[Example], shots: int, method: str) -> list[int | None]:
    """Per query the index of its own text in the pool, which it must not see, or None.

    DataError when a query has fewer than ``shots`` examples to choose from: call it before anything costly.
    """
    check_shots(shots)
    copies = first_copies(pool)
    place = {pool[i].text: i for i in copies}
    own = [place.get(query.text) for query in queries]
    for q, index in enumerate(own):
        left = len(copies) - (index is not None)
        if left < shots:
            raise DataError(
                f"select={method}: shots={shots}, but query {q} has {left} of the pool's {len(pool)} examples to "
                "choose from (copies and its own text left out); lower shots= or enlarge the pool"
            )
    return own


def top(
    scores_QN: np.ndarray,
    pool: Sequence[Example],
    queries: Sequence[Example],
    shots: int,
    method: str,
    most: int | None = None,
) -> list[list[int]]:
    """Per query the indices of the ``shots`` highest scores, best first, ties to the lower index.

    Second copies of a text and the query's own text are passed over. ``most``: give up to that many instead. DataError
    when fewer than ``shots`` are left.
    """
    own = own_places(pool, queries, shots, method)
    if not queries:
        return []
    copies = first_copies(pool)
    scores = np.full(scores_QN.shape, -np.inf)
    scores[:, copies] = scores_QN[:, copies]
    for q, index in enumerate(own):
        if index is not None:
            scores[q, index] = -np.inf
    wanted = shots if most is None else max(shots, most)
    order = np.argsort(-scores, axis=1, kind="stable")
    return [row[: min(wanted, len(copies) - (index is not None))].tolist() for row, index in zip(order, own)]


def score_all(engine: Any, pairs: Sequence[tuple[str, str]], what: str) -> list[Any]:
    """``engine.score`` in one call, None for each pair that failed; the log says how many did, and why the first.

    DataError where all failed. ``what``: the method, and what is scored.
    """
    scores = engine.score(pairs)
    failed = [score.error for score in scores if score.error is not None]
    if failed and len(failed) == len(scores):
        raise DataError(f"{what}: none of {len(scores)} can be scored; the first: {failed[0]}")
    if failed:
        log.warning("%s: %d of %d cannot be scored and are left out; the first: %s", what, len(failed), len(scores),
                    failed[0])  # fmt: skip
    return [score if score.error is None else None for score in scores]


def need_options(examples: Sequence[Example], method: str) -> int:
    """The number of options that all examples share; DataError otherwise."""
    counts = {len(e.options) for e in examples}
    if len(counts) != 1 or 0 in counts:
        raise DataError(f"select={method} needs examples with the same number of options, got {sorted(counts)}")
    return counts.pop()
