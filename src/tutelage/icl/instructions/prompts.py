"""The prompts that instruction search speaks to a model with: our own wording, and yours from a TOML file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator
from pydantic_core.core_schema import ValidationInfo

from tutelage.core.config import build, read_toml
from tutelage.core.errors import DataError
from tutelage.icl.examples import Example
from tutelage.icl.instructions.ranked import Pair
from tutelage.icl.prompts import _FIELD, Format, Prompter, fill, with_fields

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

Render = Callable[[str, Example], str]
"""render(instruction, example) -> the prompt up to where the answer begins."""


def filled(template: str, **values: str) -> str:
    """``template`` with its {slots} filled; braces in the values are left alone."""
    return fill(template, Example(values, ""))


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
            found = _FIELD.findall(template)
            odd = next((slot for slot in found if slot not in wanted), None)
            if odd is not None:
                raise ValueError(f"unknown slot {{{odd}}}; known: {', '.join(wanted)}")
            for slot in wanted:
                if found.count(slot) != 1:
                    raise ValueError(f"must hold {{{slot}}} once, holds it {found.count(slot)} times")
        if not value:
            raise ValueError("must not be empty")
        return value

    def demonstrations(self, pairs: Sequence[Pair]) -> str:
        """Inputs and outputs, as the proposals show them; of several right answers the first."""
        return "\n\n".join(filled(self.demonstration, input=p.input, output=p.answers[0]) for p in pairs)

    def context(self, instruction: str, example: Example) -> str:
        """``evaluation`` up to where the answer begins (a ``Render``)."""
        return filled(self.evaluation.partition("{output}")[0], instruction=instruction, input=example.text)


def whole_template(template: str, example: Example) -> str:
    """A ``Render`` for candidates that are whole templates: "{text} All in all, it was". Columns as in a task's format;
    what begins with {answer} is left out."""
    return fill(template.partition("{answer}")[0], example)


def in_format(form: Format, demonstrations: Sequence[Example] = ()) -> Render:
    """A ``Render`` that tries instructions in a task's own format, before the demonstrations."""

    def render(instruction: str, example: Example) -> str:
        prompter = Prompter(form.model_copy(update={"instruction": instruction}))
        return str(prompter.prompt(demonstrations, example))

    return render


def shows_input(render: Render, candidate: str, example: Example) -> bool:
    """Whether the candidate's prompt depends on the input: a wording may have lost the place where it goes."""
    columns = example.fields or {"text": example.text}
    other = with_fields(example, {name: f"{value}, or not" for name, value in columns.items()})
    try:
        return render(candidate, example) != render(candidate, other)
    except DataError:  # it names a column that there is not
        return False


def need_input(render: Render, candidates: Sequence[str], examples: Sequence[Example]) -> None:
    """DataError where there is nothing to try, nothing to try it on, or a candidate whose prompt has no input."""
    if not candidates or not examples:
        raise DataError(f"{len(candidates)} prompts and {len(examples)} examples; give at least one of each")
    for candidate in candidates:
        if not shows_input(render, candidate, examples[0]):
            raise DataError(f"the prompt {candidate!r} does not show the input; name one of its columns, as {{text}}")


def load_prompts(path: str | Path) -> MetaPrompts:
    """MetaPrompts from a TOML file: the keys it has replace ours. ConfigError names what is wrong in it."""
    return build(MetaPrompts, read_toml(path), str(path))
