"""How examples become text: templates of a task, in both directions, and the prompts that are built of them.

Direct: P(answer | demonstrations, input). Channel (Min et al. 2022a): P(input | flipped demonstrations, answer).
Models without a causal decoder may read the answer within the text (cloze), and demonstrations behind the query.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator

from tutelage.core.errors import ConfigError, DataError
from tutelage.engine.requests import Cloze
from tutelage.icl.examples import Example

Parts = Literal["both", "input", "output"]
Read = Literal["continuation", "mask", "sentinel"]
"""Where the answer is read: behind the text, or in it, at a masked LM's mask or an encoder-decoder's sentinel."""
READS = ("auto", "continuation", "mask", "sentinel")
Place = Literal["before", "after", "around"]
PLACES = ("before", "after", "around")
"""Where demonstrations stand: before the query, behind it, or half of them on each side."""
_FIELD = re.compile(r"\{(\w+)\}")


class Format(BaseModel):
    """Templates of one task. `{name}` stands for a column, `{text}` for the whole input, `{answer}` for the answer,
    `{options}` for a list of the answers there are to choose from.

    The default is MetaICL's minimal format: input, newline, answer; demonstrations apart by two empty lines.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    instruction: str = ""
    """Stands before everything, with a separator after it."""
    input: str = "{text}"
    output: str = "\n{answer}"
    """Behind the input; what stands before `{answer}` is part of the question."""
    separator: str = "\n\n\n"
    channel_input: str = "{answer}\n"
    """Channel direction: what comes before the input."""
    channel_output: str = "{text}"
    """Channel direction: the input, which is scored."""

    @field_validator("output", "channel_input")
    @classmethod
    def _answers(cls, value: str) -> str:
        if "{answer}" not in value:
            raise ValueError("must hold {answer}")
        return value

    @property
    def head(self) -> str:
        """What stands between the input and the answer."""
        return self.output.partition("{answer}")[0]

    @property
    def tail(self) -> str:
        """What stands behind the answer."""
        return self.output.partition("{answer}")[2]

    def demonstration(self, e: Example) -> str:
        """Input and answer as one text."""
        return fill(self.input, e) + fill(self.output, e)

    def query(self, e: Example) -> str:
        """The input, up to where the answer begins."""
        return fill(self.input, e) + fill(self.head, e)

    def parse(self, text: str) -> list[dict[str, str]]:
        """Fields of the inputs found in generated text that imitates demonstrations; answers are thrown away."""
        pattern = re.compile(_regex(self.input) + _regex(self.head), re.DOTALL)
        found = []
        for piece in text.split(self.separator):
            match = pattern.match(piece.lstrip("\n"))
            if match:
                fields = {name: value.strip() for name, value in match.groupdict().items() if value}
                if fields and all(fields.values()):
                    found.append(fields)
        return found


MINIMAL = Format()


def fill(template: str, e: Example) -> str:
    """A template with the example's fields in it; DataError names a field that it lacks."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name == "answer":
            return e.answer
        if name in e.fields:
            return str(e.fields[name])
        if name == "text":
            return e.text
        if name == "options" and e.options:
            return "\n".join(f"- {option}" for option in e.options)
        raise DataError(
            f"template {template!r}: no field {name!r}; the example has {', '.join(e.fields) or 'none'}, text, answer"
        )

    return _FIELD.sub(value, template)


def _regex(template: str) -> str:
    out, at, seen = "", 0, set()
    for match in _FIELD.finditer(template):
        name = match.group(1)
        out += re.escape(template[at : match.start()])
        out += f"(?P={name})" if name in seen else f"(?P<{name}>.+?)"
        seen.add(name)
        at = match.end()
    return out + re.escape(template[at:])


def with_answer(e: Example, answer: str) -> Example:
    """The example with another answer (its gold index follows where the answer is one of the options)."""
    return replace(e, answer=answer, gold=e.options.index(answer) if answer in e.options else -1)


def with_fields(e: Example, fields: Mapping[str, str]) -> Example:
    """The example with another input; `text` is the new fields' text, or all of them joined."""
    return replace(e, fields=dict(fields), text=fields.get("text") or " ".join(fields.values()))


@dataclass(frozen=True)
class Prompter:
    """Prompts of one format in one direction.

    parts: "input" leaves the answers of demonstrations out, "output" their inputs (format studies). chat: messages for
    the model's chat template: the instruction is the system's, each demonstration a turn of both sides. read, demos:
    see Read and Place.
    """

    format: Format = MINIMAL
    direction: Literal["direct", "channel"] = "direct"
    parts: Parts = "both"
    chat: bool = False
    read: Read = "continuation"
    demos: Place = "before"

    def __post_init__(self) -> None:
        if self.chat and self.direction == "channel":
            raise ConfigError("score=channel has no chat form: the answer would come before the question; chat=false")
        if self.chat and self.parts != "both":
            raise ConfigError(f"demonstrations of {self.parts}s alone have no chat form; chat=false")

        if self.read == "continuation":
            if self.demos != "before":
                raise ConfigError(f"demos={self.demos} puts demonstrations behind the answer, which are read with "
                                  "read=mask or read=sentinel; demos=before")  # fmt: skip
        elif self.direction == "channel" or self.chat:
            raise ConfigError(f"read={self.read} has neither a channel nor a chat form; score=direct chat=false")
        elif "{answer}" in self.format.tail:
            raise ConfigError(f"read={self.read}: the template {self.format.output!r} says the answer twice")

    def cloze(self, demonstrations: Sequence[Example], query: Example) -> Cloze:
        """The text around the answer's place. The instruction stands before everything."""
        count = len(demonstrations)
        cut = {"before": count, "after": 0, "around": (count + 1) // 2}[self.demos]
        behind = "".join(self.format.separator + self._demonstration(e) for e in demonstrations[cut:])
        before = self.prefix(demonstrations[:cut]) + self.format.query(query)
        return Cloze(before, fill(self.format.tail, query) + behind)

    def prefix(self, demonstrations: Sequence[Example]) -> str:
        """Instruction and demonstrations, each with its separator."""
        pieces = [self.format.instruction] if self.format.instruction else []
        pieces += [self._demonstration(e) for e in demonstrations]
        return "".join(piece + self.format.separator for piece in pieces)

    def _demonstration(self, e: Example) -> str:
        f = self.format
        before, after = (f.input, f.output) if self.direction == "direct" else (f.channel_input, f.channel_output)
        inside = {"direct": ("input", "output"), "channel": ("output", "input")}[self.direction]
        kept = [fill(t, e) for t, part in zip((before, after), inside) if self.parts in ("both", part)]
        # a half stands alone: what joined it to the other half goes too
        return "".join(kept) if len(kept) == 2 else kept[0].strip()

    def pair(self, query: Example, option: str) -> tuple[str, str]:
        """(context behind the prefix, continuation to score) for one option."""
        if self.direction == "direct":
            return self.format.query(query), option
        given = with_answer(query, option)
        return fill(self.format.channel_input, given), fill(self.format.channel_output, given)

    def prompt(self, demonstrations: Sequence[Example], query: Example) -> Any:
        """The whole prompt up to the answer: a text, or messages."""
        if not self.chat:
            return self.prefix(demonstrations) + self.format.query(query)
        f = self.format
        head = f.head.strip()
        turns: list[dict[str, str]] = [{"role": "system", "content": f.instruction}] if f.instruction else []
        for e in (*demonstrations, query):
            asked = fill(f.input, e) + (f"\n{head}" if head else "")
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": e.answer}]
        return turns[:-1]
