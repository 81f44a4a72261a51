"""Training to learn in context: sequences of demonstrations and a query, with the loss on outputs alone.

MetaICL (Min et al. 2022): k demonstrations and a query of one task, tasks drawn uniformly, the loss on the query's
output. Self-supervised training (Chen et al. 2022): k + 1 examples of one objective, the loss on the output of each.
The text of a sequence is the prompt that `tutelage icl` scores, built by the same Prompter, so that what is trained is
what is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.core.errors import ConfigError, DataError
from tutelage.icl.examples import Example
from tutelage.icl.prompts import Format, Prompter
from tutelage.loss.lm import token_logprobs
from tutelage.text.loader import IGNORED, Batch, check_state, collate
from tutelage.text.selfsupervised import Objective, SelfSupervised

MARKERS = Format(
    input="Input: {text}", output="\nOutput: {answer}", separator="\n",
    channel_input="Output: {answer}\nInput: ", channel_output="{text}",
)  # fmt: skip
"""Chen et al.'s form of an example (section 3.1): two markers, everything in a line of its own."""
Span = tuple[int, int]
TRIES = 50


class Draw(Protocol):
    """Where sequences come from."""

    @property
    def size(self) -> list[int]:
        """How much there is: by this a checkpoint knows its data again."""
        ...

    def __call__(self, rng: np.random.Generator, count: int) -> tuple[Format, Sequence[Example]]:
        """The format and `count` examples of one task; the last is the query."""
        ...


@dataclass(frozen=True)
class Tasks:
    """Draws a task uniformly, whatever its size, and different examples of it."""

    pools: Sequence[tuple[Format, Sequence[Example]]]

    @property
    def size(self) -> list[int]:
        return [len(self.pools), sum(len(pool) for _, pool in self.pools)]

    def __call__(self, rng: np.random.Generator, count: int) -> tuple[Format, Sequence[Example]]:
        form, pool = self.pools[int(rng.integers(len(self.pools)))]
        return form, [pool[int(i)] for i in rng.choice(len(pool), count, replace=False)]


@dataclass(frozen=True)
class Selfmade:
    """Draws an objective uniformly, and examples of it that the text gives."""

    text: SelfSupervised
    objectives: Sequence[Objective]
    format: Format

    @property
    def size(self) -> list[int]:
        return [len(self.text.documents), sum(len(document) for document in self.text.documents)]

    def __call__(self, rng: np.random.Generator, count: int) -> tuple[Format, Sequence[Example]]:
        objective = self.objectives[int(rng.integers(len(self.objectives)))]
        pairs = self.text.examples(objective, count, rng)
        return self.format, [Example({"text": p.input}, p.input, answer=p.output) for p in pairs]


def render(prompter: Prompter, examples: Sequence[Example]) -> tuple[str, list[Span]]:
    """(text, the characters [start, end) of each output): demonstrations and, last, the query with its answer.

    An output is what `Prompter.pair` has scored: the answer, or in the channel direction the input; blanks before it
    belong to its first token, as in icl/encode.py.
    """
    lead = prompter.prefix(())
    text, spans = lead, []
    for number, example in enumerate(examples, 1):
        context, output = prompter.pair(example, example.answer)
        spans.append((len(text) + len(context.rstrip(" ")), len(text) + len(context) + len(output)))
        text += prompter.prefix([example])[len(lead) :] if number < len(examples) else context + output
    return text, spans


def encode(tokenizer: Any, text: str, spans: Sequence[Span]) -> tuple[list[int], list[int]]:
    """(ids, labels): a token is predicted where it holds a character of a span, others have -100."""
    found = tokenizer(text, return_offsets_mapping=True)
    ids = list(found["input_ids"])
    labels = [IGNORED] * len(ids)
    for place, (start, end) in enumerate(found["offset_mapping"]):
        if any(start < right and end > left for left, right in spans):
            labels[place] = ids[place]
    return ids, labels


class Sequences:
    """Endless batches {"input_ids", "labels", "attention_mask"} [B, T] of sequences of `shots` demonstrations and a
    query. What is drawn for a row depends on the seed and the row's number alone.

    every: the outputs of the demonstrations are predicted too, not the query's alone. A sequence longer than
    `max_length` tokens loses demonstrations from its beginning (`dropped` counts them); one whose query alone is longer
    is drawn anew (`too_long`).
    """

    def __init__(
        self, draw: Draw, tokenizer: Any, shots: int, batch_size: int, max_length: int, seed: int = 0,
        channel: bool = False, every: bool = False,
    ) -> None:  # fmt: skip
        if not getattr(tokenizer, "is_fast", False):
            raise ConfigError(f"{type(tokenizer).__name__} cannot tell which characters a token stands for; in-context "
                              "training needs a tokenizer with a tokenizer.json")  # fmt: skip
        self.draw, self.tokenizer, self.shots, self.batch_size = draw, tokenizer, shots, batch_size
        self.max_length, self.seed, self.channel, self.every = max_length, seed, channel, every
        self.position, self.dropped, self.too_long = 0, 0, 0
        self.handed: list[int] = []  # the last batch's row numbers

    def __next__(self) -> Batch:
        rows = [self.row(number) for number in range(self.position, self.position + self.batch_size)]
        self.handed = list(range(self.position, self.position + self.batch_size))
        self.position += self.batch_size
        return collate(rows, self.tokenizer.pad_token_id)

    def row(self, number: int) -> dict[str, list[int]]:
        """The sequence of this number; DataError where hardly any query fits."""
        rng = np.random.default_rng([self.seed, 4, number])
        for _ in range(TRIES):
            form, examples = self.draw(rng, self.shots + 1)
            prompter = Prompter(form, "channel" if self.channel else "direct")
            for first in range(len(examples)):
                text, spans = render(prompter, examples[first:])
                ids, labels = encode(self.tokenizer, text, spans if self.every else spans[-1:])
                if len(ids) <= self.max_length and any(label != IGNORED for label in labels[1:]):
                    self.dropped += first
                    return {"input_ids": ids, "labels": labels}
            self.too_long += 1
        raise DataError(f"none of {TRIES} examples fits into max_length={self.max_length} tokens; raise it, or choose "
                        f"shorter texts: {text[:60]!r} ...")  # fmt: skip

    def _own(self) -> dict[str, Any]:
        return {"seed": self.seed, "shots": self.shots, "batch_size": self.batch_size, "data": self.draw.size}

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"position": self.position, "dropped": self.dropped, "too_long": self.too_long, **self._own()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the batch at which the state was taken. ConfigError for another seed, size or data."""
        check_state(state, self._own())
        self.position, self.dropped, self.too_long = (int(state[k]) for k in ("position", "dropped", "too_long"))


def mean_of_sequences(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Cross-entropy, averaged over each sequence's predicted tokens and summed over sequences, as MetaICL has it: a
    long answer weighs no more than a short one. "right": the share of these tokens that are the likeliest."""
    ids, labels = batch["input_ids"], batch["labels"][:, 1:]
    logits = model(input_ids=ids, attention_mask=batch["attention_mask"], use_cache=False).logits
    said = labels != IGNORED
    nats = torch.where(said, -token_logprobs(logits, ids), 0.0)
    right = (logits.detach()[:, :-1][said].argmax(-1) == labels[said]).float().mean()
    total = (nats.sum(1) / said.sum(1).clamp(min=1)).sum()
    return total, {"count": len(ids), "tokens": ids.numel(), "right": float(right)}
