"""One example of a task: what every part of in-context learning reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Example:
    """An input, the answers it may have, and the right one."""

    fields: Mapping[str, str] = field(hash=False)
    """The columns that templates name."""
    text: str
    """The whole input as one plain string: what retrievers and perplexities read."""
    options: tuple[str, ...] = ()
    """Label words or choices, in order; empty where the answer is open."""
    gold: int = -1
    """Index into options; -1 where open or unknown."""
    answer: str = ""
    """The gold answer as text (``options[gold]`` where there are options)."""
    rationale: str = ""
    """A gold chain of thought, where the data has one."""
