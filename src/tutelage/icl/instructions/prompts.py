"""The prompts that instruction search speaks to a model with: our own wording, and yours from a TOML file."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator
from pydantic_core.core_schema import ValidationInfo

from tutelage.core.config import build, read_toml
from tutelage.icl.instructions.ranked import Pair

_SLOT = re.compile(r"\{(\w+)\}")
_SLOTS = {
    "demonstration": ("input", "output"),
    "forward": ("demonstrations",),
    "induction": ("demonstrations",),
    "reverse": ("instruction", "demonstrations"),
    "insert": ("instruction", "demonstrations"),
    "variation": ("instruction",),
    "paraphrase": ("text",),
    "evaluation": ("instruction", "input", "output"),
}

Render = Callable[[str, str], str]
"""render(instruction, input) -> the prompt up to where the answer begins."""


def fill(template: str, **values: str) -> str:
    """``template`` with its {slots} filled; braces in the values are left alone, and so are slots without a value."""
    return _SLOT.sub(lambda found: values.get(found[1], found[0]), template)


class MetaPrompts(BaseModel):
    """Templates with {slots}. Written for models that continue a text; the same words serve as one chat turn."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    demonstration: str = "Input: {input}\nOutput: {output}"
    """One input and output, as {demonstrations} shows it; a blank line stands between two."""
    forward: str = (
        "Somebody was given one instruction and followed it for several inputs. These are the inputs, each with the "
        "output that came back:\n\n{demonstrations}\n\nThe instruction that they were given was to"
    )
    """APE's forward proposal: the instruction is what comes after."""
    induction: str = (
        "Somebody was given one instruction and several inputs, and wrote an output for each of them. These are the "
        "inputs and outputs:\n\n{demonstrations}\n\nThe instruction was"
    )
    """Instruction induction's proposal (Honovich et al. 2022)."""
    reverse: str = "Instruction: {instruction}\n\nFollowed for these inputs, it gave:\n\n{demonstrations}"
    """APE's reverse proposal: a model that fills gaps writes {instruction} at the start."""
    insert: str = (
        "For each input below the task was to {instruction}, and this is what was written:\n\n{demonstrations}"
    )
    """The same with the gap inside a sentence."""
    variation: str = (
        "Say this instruction in other words. What it asks for must stay the same.\n\nInstruction: {instruction}\n\n"
        "In other words:"
    )
    """APE's resampling around a good instruction."""
    paraphrase: tuple[str, ...] = (
        "Put the following sentence in other words: {text}\nIn other words:",
        "{text}\nIn other words:",
        "This is a text: {text}\nThe same, as somebody else may well have put it:",
        "A sentence much like this one: {text}\nLike it:",
        "Reword this sentence: {text}\nReworded:",
        "Give another version of this sentence: {text}\nAnother version:",
        "How else could one say the following? {text}\nOne could say:",
    )
    """SPELL's expansion of hand-written prompts."""
    evaluation: str = "Instruction: {instruction}\n\nInput: {input}\nOutput: {output}"
    """How an instruction is tried. What stands behind {output} is not used."""

    @field_validator("*")
    @classmethod
    def _has_its_slots(cls, value: Any, info: ValidationInfo) -> Any:
        wanted = _SLOTS[str(info.field_name)]
        for template in (value,) if isinstance(value, str) else value:
            found = _SLOT.findall(template)
            for slot in wanted:
                if found.count(slot) != 1:
                    raise ValueError(f"must hold {{{slot}}} once, holds it {found.count(slot)} times")
        if not value:
            raise ValueError("must not be empty")
        return value

    def demonstrations(self, pairs: Sequence[Pair]) -> str:
        """Inputs and outputs, as the proposals show them; of several right answers the first."""
        return "\n\n".join(fill(self.demonstration, input=p.input, output=p.answers[0]) for p in pairs)

    def context(self, instruction: str, text: str) -> str:
        """``evaluation`` up to where the answer begins (a ``Render``)."""
        return fill(self.evaluation.partition("{output}")[0], instruction=instruction, input=text)


def whole_template(template: str, text: str) -> str:
    """A ``Render`` for candidates that are whole templates: "{input} All in all, it was" with the input filled in."""
    return fill(template, input=text)


def load_prompts(path: str | Path) -> MetaPrompts:
    """MetaPrompts from a TOML file: the keys it has replace ours. ConfigError names what is wrong in it."""
    return build(MetaPrompts, read_toml(path), str(path))
