"""Prompts that fit a model: demonstrations go first, then the middle of the input. Everything is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.icl.examples import Example
from tutelage.icl.prompts import Prompter

SPARE = 8
"""Tokens kept for roles, beginning and end."""


@dataclass(frozen=True)
class Fitted:
    """A prompt with its answer. shots: demonstrations left; cut: whether the input lost its middle."""

    prompt: str
    completion: str
    shots: int
    cut: bool


@dataclass(frozen=True)
class Fitting:
    """Without a tokenizer everything fits; else prompt and answer together have at most `max_length` tokens."""

    tokenizer: Any = None
    max_length: int = 0

    def tokens(self, text: str) -> int:
        """Tokens of a text, without those that stand around it."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def takes(self, answer: str) -> bool:
        """Whether an answer is short enough to be learned: at most half of the room is its."""
        return self.tokenizer is None or self.tokens(answer) <= (self.max_length - SPARE) // 2

    def fit(self, prompter: Prompter, demonstrations: Sequence[Example], example: Example) -> Fitted:
        """The row of an example whose answer fits."""
        context, completion = prompter.pair(example, example.answer)
        completion = completion.strip()
        prompts = [(prompter.prefix(demonstrations[n:]) + context).strip() for n in range(len(demonstrations) + 1)]
        if self.tokenizer is None:
            return Fitted(prompts[0], completion, len(demonstrations), False)
        room = self.max_length - SPARE - self.tokens(completion)
        for dropped, prompt in enumerate(prompts):
            if self.tokens(prompt) <= room:
                return Fitted(prompt, completion, len(demonstrations) - dropped, False)
        return Fitted(self.without_middle(prompts[-1], room), completion, 0, True)

    def without_middle(self, text: str, room: int) -> str:
        """Beginning and end of a text, `room` tokens in all: the question stands at either end."""
        keep = room
        while True:
            spans = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            head, tail = keep - keep // 2, keep // 2
            short = text[: spans[head - 1][1] if head else 0] + (text[spans[-tail][0] :] if tail else "")
            over = self.tokens(short) - room  # where the halves meet other tokens may arise
            if over <= 0 or not keep:
                return short
            keep = max(0, keep - over)
