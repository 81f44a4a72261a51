"""One instruction with its truth: what travels in a row from the world to the judge."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Item:
    """One instruction: the prompt, the one right answer, and a demonstration of the best style.

    `prompt` is a string, or in the full world's dialogues a list of {"role", "content"} that ends with the user.
    `meta` holds the question and, in the full world, what the judge needs (`grade` and the wordings it accepts).
    Every value survives JSON: `Item(**json.loads(json.dumps(asdict(item)))) == item`.
    """

    family: str
    prompt: str | list[dict[str, str]]
    answer: str
    good: str
    passage: str
    harmful: bool
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def prompt_text(self) -> str:
        """The prompt as one string: a dialogue's turns joined by " | "."""
        return self.prompt if isinstance(self.prompt, str) else " | ".join(m["content"] for m in self.prompt)
