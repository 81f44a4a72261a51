"""A constitution: principles to criticise and revise by, principles to choose by, worked examples, and how all of it is
put into words. Our own TOML, and the JSON files of Bai et al. (2022), are read."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tutelage.core.config import read_toml
from tutelage.core.errors import ConfigError

BUILT_IN = {
    "general": ("tutelage.feedback", "constitutions/general.toml"),
    "schoolroom": ("tutelage.schoolroom", "charter.toml"),
}
Message = dict[str, str]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Principle(_Strict):
    """What one round of critique and revision asks for."""

    name: str
    critique: str
    """The critique request."""
    revision: str
    """The revision request."""
    about: list[str] = []
    """What it looks for, for readers."""


class Example(_Strict):
    """A worked critique and revision."""

    human: str
    answer: str
    request: str
    critique: str
    revision_request: str
    revision: str


class Choice(_Strict):
    """A worked comparison."""

    human: str
    better: str
    worse: str
    reasoning: str = ""


class Format(_Strict):
    """The words around requests and answers; the default is the paper's. `{name}` is filled in."""

    human: str = "\n\nHuman: {text}"
    assistant: str = "\n\nAssistant: {text}"
    critique: str = "\n\nCritiqueRequest: {request}\n\nCritique:"
    revision: str = "\n\nRevisionRequest: {request}\n\nRevision:"
    choice: str = (
        "Consider the following conversation between a human and an assistant:\n{conversation}\n\n{principle} "
        "Options:\n (A) [[[{a}]]]\n (B) [[[{b}]]]\n\nThe answer is:"
    )
    reason: str = (
        "\n\nHuman: Consider the following conversation between a human and an assistant:\n{conversation}\n\n"
        "{principle}\n (A) [[[{a}]]]\n (B) [[[{b}]]]\n\nAssistant: Let's think step by step:"
    )
    conclude: str = " {reasoning}\n\nHuman:\nSo the answer is:"
    options: tuple[str, str] = (" (A)", " (B)")
    stop: list[str] = ["\n\nHuman:", "\n\nAssistant:", "\n\nCritiqueRequest:", "\n\nRevisionRequest:", "\n\nCritique:",
                       "\n\nRevision:"]
    """Where a text model's answer, critique or revision ends, beside its end of text."""

    @field_validator("choice", "reason")
    @classmethod
    def _whole(cls, value: str) -> str:
        missing = [name for name in ("conversation", "principle", "a", "b") if "{" + name + "}" not in value]
        if missing:
            raise ValueError(f"must hold {{{missing[0]}}}")
        return value


class Constitution(_Strict):
    """Everything that one file (or the paper's folder) says."""

    principles: list[Principle] = Field(min_length=1)
    preferences: list[str] = []
    examples: list[Example | str] = []
    """Worked examples; a string is a whole transcript, as the paper's are."""
    choices: list[Choice | str] = []
    reasonings: list[Choice | str] = []
    """With `reasoning`. A string has {} where the principle goes."""
    format: Format = Format()

    def principle(self, rng: random.Random) -> Principle:
        """One of them, each as likely as any other."""
        return rng.choice(self.principles)


def load_constitution(name: str) -> Constitution:
    """"general" (ours), "schoolroom" (the embedded world's), a .toml file, the paper's folder of .json files, or its
    CritiqueRevisionInstructions.json alone. ConfigError names the file and key that is wrong."""
    if name in BUILT_IN:
        package, inside = BUILT_IN[name]
        return _of_toml(Path(str(files(package).joinpath(inside))))
    path = Path(name)
    if path.is_dir():
        return _of_folder(path)
    if path.suffix == ".json":
        return Constitution(principles=_instructions(path), preferences=[])
    if path.suffix == ".toml":
        return _of_toml(path)
    known = ", ".join(BUILT_IN)
    raise ConfigError(f"constitution={name!r}: expected {known}, a .toml file, or a folder of .json files")


def _of_toml(path: Path) -> Constitution:
    raw = read_toml(path)
    known = {"principle", "preference", "example", "preference_example", "reasoning_example", "format"}
    if odd := sorted(set(raw) - known):
        raise ConfigError(f"{path}: {odd[0]!r} is unknown; expected {', '.join(sorted(known))}")
    preference = raw.get("preference", {})
    if not isinstance(preference, dict) or set(preference) - {"principles"}:
        raise ConfigError(f"{path}: [preference] holds principles = [...] and nothing else")
    values = {
        "principles": raw.get("principle", []), "preferences": preference.get("principles", []),
        "examples": raw.get("example", []), "choices": raw.get("preference_example", []),
        "reasonings": raw.get("reasoning_example", []), "format": raw.get("format", {}),
    }  # fmt: skip
    return _built(values, path)


def _built(values: dict[str, Any], path: Path) -> Constitution:
    try:
        return Constitution.model_validate(values)
    except ValidationError as error:
        issue = error.errors()[0]
        place = ".".join(str(part) for part in issue["loc"])
        raise ConfigError(f"{path}: {place}: {issue['msg']}") from None


CRITIQUES, EXAMPLES = "CritiqueRevisionInstructions.json", "CritiqueRevisionFewShotPrompts.json"
PREFERENCES, CHOICES = "RLMadisonInstructions.json", "RLMadisonFewShotPrompts.json"
REASONINGS = "RLMadisonPrecogFewShotPrompts.json"


def _of_folder(folder: Path) -> Constitution:
    """The paper's five files; all but the first may be absent."""
    def optional(name: str) -> Any:
        return _json(folder / name) if (folder / name).is_file() else []

    choices: list[Choice | str] = [
        Choice(human=_after(row["prompt"], "Human:"), better=row["corrects"][0], worse=row["incorrects"][0])
        for row in _rows(folder / CHOICES, optional(CHOICES), ("prompt", "corrects", "incorrects"))
    ]
    thought = _rows(folder / REASONINGS, optional(REASONINGS), ("prompt",))
    # each ends with "Human:" for the turn that follows, which the conversation brings itself
    examples: list[Example | str] = [re.sub(r"\s*Human:\s*$", "", text).strip() for text in optional(EXAMPLES)]
    preferences = [text.strip().removesuffix("Options:").strip() for text in optional(PREFERENCES)]
    return Constitution(
        principles=_instructions(folder / CRITIQUES), preferences=preferences, examples=examples, choices=choices,
        reasonings=[row["prompt"] for row in thought],
    )  # fmt: skip


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; expected the paper's {CRITIQUES}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None


def _rows(path: Path, found: Any, keys: Sequence[str]) -> list[dict[str, Any]]:
    for number, row in enumerate(found):
        if not isinstance(row, dict) or not all(row.get(key) for key in keys):
            raise ConfigError(f"{path}: entry {number}: expected an object with {', '.join(keys)}")
    return list(found)


def _instructions(path: Path) -> list[Principle]:
    """{"name": {"prompt": ["CritiqueRequest: .. Critique:"], "edit_request": "RevisionRequest: .. Revision:"}}"""
    found = _json(path)
    if not isinstance(found, dict) or not found:
        raise ConfigError(f"{path}: expected an object of principles, each with prompt and edit_request")
    out = []
    for name, row in found.items():
        try:
            prompts = row["prompt"] if isinstance(row["prompt"], list) else [row["prompt"]]
            asked = _between(row["edit_request"], "RevisionRequest:", "Revision:")
            out += [Principle(name=name, critique=_between(p, "CritiqueRequest:", "Critique:"), revision=asked)
                    for p in prompts]
        except (KeyError, TypeError, ValueError):
            words = "expected prompt (CritiqueRequest: .. Critique:) and edit_request"
            raise ConfigError(f"{path}: {name}: {words}") from None
    return out


def _between(text: str, start: str, end: str) -> str:
    """What stands between two marks; ValueError where there is nothing."""
    found = text.partition(start)[2].strip().removesuffix(end).strip()
    if not found:
        raise ValueError(text)
    return found


def _after(text: str, mark: str) -> str:
    return text.partition(mark)[2].removesuffix("Assistant:").partition("\n\nAssistant:")[0].strip()


# ---- How it is put into words ----


def transcript(form: Format, messages: Sequence[Message], answer: str | None = None) -> str:
    """A conversation, and perhaps the answer to it, as one text. A system message stands before it as it is."""
    parts = []
    for message in messages:
        if message["role"] == "system":
            parts.append(message["content"])
            continue
        template = form.human if message["role"] == "user" else form.assistant
        parts.append(fill(template, text=message["content"]))
    if answer is not None:
        parts.append(fill(form.assistant, text=answer))
    return "".join(parts)


def fill(template: str, **values: str) -> str:
    """The template with {name} filled in, once and together: what is filled in may itself hold braces."""
    return re.sub(r"\{(\w+)\}", lambda m: values.get(m.group(1), m.group(0)), template)


def example_text(form: Format, example: Example | str) -> str:
    """A worked critique and revision as a transcript."""
    if isinstance(example, str):
        return "\n\n" + example
    said = transcript(form, [{"role": "user", "content": example.human}], example.answer)
    asked = fill(form.critique, request=example.request) + f" {example.critique}"
    return said + asked + fill(form.revision, request=example.revision_request) + f" {example.revision}"


def question_text(form: Format, principle: str, messages: Sequence[Message], a: str, b: str, reason: bool) -> str:
    """The multiple-choice question on two answers."""
    template = form.reason if reason else form.choice
    conversation = transcript(form, messages).strip()
    return fill(template, principle=principle, conversation=conversation, a=a, b=b)


def choice_examples(c: Constitution, principles: Sequence[str], rng: random.Random, reason: bool) -> list[str]:
    """The worked comparisons that stand before a question, each with a principle and an order of its own."""
    out = []
    for example in c.reasonings if reason else c.choices:
        principle = rng.choice(principles)
        if isinstance(example, str):
            out.append(example.replace("{}", principle, 1).strip() + "\n\n")
            continue
        first = rng.random() < 0.5
        a, b = (example.better, example.worse) if first else (example.worse, example.better)
        asked = question_text(c.format, principle, [{"role": "user", "content": example.human}], a, b, reason)
        if reason:
            asked += fill(c.format.conclude, reasoning=example.reasoning)
        out.append(asked.strip() + c.format.options[0 if first else 1] + "\n\n")
    return out
