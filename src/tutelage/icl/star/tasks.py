"""What rationales are made for: how a question is asked (with and without the hint), and when an answer is right."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from tutelage.core.errors import ConfigError, DataError
from tutelage.core.records import BadRows
from tutelage.engine.requests import Prompt
from tutelage.icl.reasoning.exemplars import CHAINS
from tutelage.icl.reasoning.problems import Problem, read_problems
from tutelage.icl.reasoning.prompts import STOP, ask
from tutelage.icl.star import arithmetic
from tutelage.text.answers import answer_key
from tutelage.train.rewards import Reward, as_function, judge_rows
from tutelage.train.sources import divide, nonempty, prompts

HALF = 0.5
"""A check's score above this means that the answer is right."""
PARAGRAPH = (*STOP, "\n\n")
"""What ends a rationale of a model without chat: demonstrations are paragraphs of question and answer."""
_ENDING = re.compile(r"answer is:? *[^\s.][^\n]*?(?:\.(?=\s)|\n)", re.IGNORECASE)


@dataclass(frozen=True)
class Item:
    """One question: what is asked, the gold answer ("" where only the checker knows), and the group it is told by."""

    question: str
    answer: str
    group: str = ""
    rationale: str = ""
    problem: Problem | None = None
    row: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """A kind of questions."""

    stop: tuple[str, ...]
    """Texts that end a rationale."""
    max_tokens: int
    """Room for a rationale."""

    def prompt(self, item: Item, shown: Sequence[Item], hint: bool) -> Prompt:
        """What the model goes on from; with `hint` the gold answer stands in it, and in the demonstrations' too."""
        ...

    def read(self, item: Item, text: str) -> str | None:
        """The answer that the rationale gives, in the form in which equal answers are equal texts."""
        ...

    def right(self, items: Sequence[Item], texts: Sequence[str]) -> list[bool]:
        """Whether each rationale ends with the right answer."""
        ...

    def whole(self, text: str) -> str | None:
        """Of a text that ran into its limit: the part up to its answer, or None where it had not come to one."""
        ...


class Arithmetic:
    """Sums with a scratchpad."""

    stop: tuple[str, ...] = ()

    def __init__(self, digits: Sequence[int], layout: arithmetic.Layout) -> None:
        self.layout = layout
        longest = arithmetic.scratchpad((10 ** max(digits) - 1,) * 2, layout)
        # tokens at most as many as characters; words apart and line ends are far fewer
        self.max_tokens = len(longest.replace("\n", " \n ").split(" ")) + 8

    def item(self, pair: arithmetic.Pair) -> Item:
        """A sum, its group the number of digits."""
        whole = arithmetic.scratchpad(pair, self.layout)
        return Item(arithmetic.question(pair), arithmetic.spaced(sum(pair)), str(len(str(pair[0]))), whole)

    def prompt(self, item: Item, shown: Sequence[Item], hint: bool) -> Prompt:
        before = "".join(
            f"{arithmetic.prompt(one.question, one.answer if hint else '')}{one.rationale}\n\n" for one in shown
        )
        return before + arithmetic.prompt(item.question, item.answer if hint else "")

    def read(self, item: Item, text: str) -> str | None:
        return arithmetic.read_answer(text)

    def right(self, items: Sequence[Item], texts: Sequence[str]) -> list[bool]:
        return [self.read(item, text) == item.answer for item, text in zip(items, texts, strict=True)]

    def whole(self, text: str) -> str | None:
        return None


class Problems:
    """Questions with one right answer, asked as icl.reasoning asks them.

    The hint, as STaR writes it: behind the right option " (CORRECT)", else the answer in brackets behind the question.
    """

    def __init__(self, chat: bool, max_tokens: int) -> None:
        self.chat, self.max_tokens = chat, max_tokens
        self.stop: tuple[str, ...] = () if chat else PARAGRAPH

    def prompt(self, item: Item, shown: Sequence[Item], hint: bool) -> Prompt:
        exemplars, problem = ([_hinted(p) if hint else p for p in map(_problem, some)] for some in (shown, [item]))
        return ask(exemplars, problem[0], self.chat)

    def read(self, item: Item, text: str) -> str | None:
        problem = _problem(item)
        found = problem.read(text)
        return None if found is None else answer_key(found, problem.kind)

    def right(self, items: Sequence[Item], texts: Sequence[str]) -> list[bool]:
        return [_problem(item).grade(_problem(item).read(text)) for item, text in zip(items, texts, strict=True)]

    def whole(self, text: str) -> str | None:
        found = _ENDING.search(text)
        return text[: found.end()].rstrip("\n") if found else None


class Checked:
    """Prompts whose answers a function with the signature of a reward judges: right above one half.

    The hint is the row's "answer", on a line of its own; rows without one are never rationalised.
    """

    def __init__(self, check: Reward, chat: bool, max_tokens: int) -> None:
        self.check, self.chat, self.max_tokens = check, chat, max_tokens
        self.stop: tuple[str, ...] = () if chat else PARAGRAPH

    def prompt(self, item: Item, shown: Sequence[Item], hint: bool) -> Prompt:
        def asked(one: Item) -> str:
            return f"{one.question}\n(The answer is {one.answer}.)" if hint else one.question

        if self.chat:
            turns = [
                {"role": role, "content": text}
                for one in shown
                for role, text in (("user", asked(one)), ("assistant", one.rationale))
            ]
            return [*turns, {"role": "user", "content": asked(item)}]
        before = "".join(f"Q: {asked(one)}\nA: {one.rationale}\n\n" for one in shown)
        return f"{before}Q: {asked(item)}\nA:"

    def read(self, item: Item, text: str) -> str | None:
        return " ".join(text.split()) or None

    def right(self, items: Sequence[Item], texts: Sequence[str]) -> list[bool]:
        if not items:
            return []
        rows = [{**item.row, "prompt": item.question} for item in items]
        return [score > HALF for score in judge_rows(self.check, rows, texts)]

    def whole(self, text: str) -> str | None:
        return text  # whether it is whole is the function's to say


def _problem(item: Item) -> Problem:
    assert item.problem is not None, "an item of read_problems"
    return item.problem


def _hinted(problem: Problem) -> Problem:
    if problem.kind != "choice":
        return replace(problem, question=f"{problem.question} ({problem.answer})")
    at = problem.letters.index(problem.answer)
    options = [f"{option} (CORRECT)" if i == at else option for i, option in enumerate(problem.options)]
    return replace(problem, options=tuple(options))


@dataclass(frozen=True)
class Material:
    """A task with its questions: to learn from, to stop by, to measure with at the end, and demonstrations."""

    task: Task
    train: list[Item]
    held: list[Item]
    test: list[Item]
    shown: list[Item]


@dataclass(frozen=True)
class Source:
    """Where the questions come from (the stage's keys of these names)."""

    data: str
    held_out: str | None
    test: str | None
    check: Any
    layout: arithmetic.Layout
    exemplars: str | None
    chat: bool
    pool: int
    held_rows: int
    max_tokens: int
    seed: int


def gather(source: Source, bad: BadRows) -> Material:
    """Everything that a run asks. DataError or ConfigError where it cannot be read or does not fit together."""
    if source.data.startswith("arithmetic:"):
        return _sums(source)
    if source.check is not None:
        check: Task = Checked(as_function(source.check), source.chat, source.max_tokens)
        return _divided(source, check, lambda path: _checked_items(path, source, bad), [])
    shown = read_problems(source.exemplars) if source.exemplars else None
    made = _divided(source, Problems(source.chat, source.max_tokens), lambda path: _problem_items(path, bad), [])
    kind = _problem(made.train[0]).kind
    return replace(made, shown=[_item(p) for p in (shown or CHAINS[kind])])


def _sums(source: Source) -> Material:
    if unwanted := [k for k in ("held_out", "test", "check", "exemplars") if getattr(source, k) is not None]:
        raise ConfigError(f"{unwanted[0]}= does not go with data={source.data!r}: its sums are made and checked here")
    if source.chat:
        raise ConfigError(f"chat=true does not go with data={source.data!r}: a scratchpad is plain text")
    digits = arithmetic.digits_of(source.data)
    task = Arithmetic(digits, source.layout)
    held, test = measured_sums(digits, source.held_rows, source.seed)
    apart = {*held, *test}
    train = arithmetic.training_sums(digits, source.pool, source.seed, "train", apart)
    shown = arithmetic.training_sums(digits, 2 * len(digits), source.seed, "shown", apart)
    return Material(task, *([task.item(p) for p in pairs] for pairs in (train, held, test, shown)))


def measured_sums(
    digits: Sequence[int], rows: int, seed: int
) -> tuple[list[arithmetic.Pair], list[arithmetic.Pair]]:
    """(held-out, test) sums, which have none in common; no training may see them."""
    held = arithmetic.held_sums(digits, rows, seed, "held", set())
    return held, arithmetic.held_sums(digits, rows, seed, "test", set(held))


def _divided(source: Source, task: Task, read: Any, shown: list[Item]) -> Material:
    if source.held_out is not None:
        held = read(source.held_out)
        apart = {item.question for item in held}
        train = [item for item in read(source.data) if item.question not in apart]
    else:
        train, held = divide(read(source.data), lambda item: item.question)
    test = read(source.test) if source.test is not None else []
    measured = {item.question for item in test}
    train = [item for item in train if item.question not in measured][: source.pool]
    for words, items in (("to train on", train), ("held out", held)):
        if not items:
            raise DataError(f"{source.data}: no question is left {words}; give more, or held_out=FILE")
    return Material(task, train, held[: source.held_rows], test[: source.held_rows], shown)


def _problem_items(path: str, bad: BadRows) -> list[Item]:
    return [_item(problem) for problem in read_problems(path, bad=bad)]


def _item(problem: Problem) -> Item:
    return Item(problem.text, problem.answer, "", problem.rationale, problem)


def _checked_items(path: str, source: Source, bad: BadRows) -> list[Item]:
    items = []
    for row in nonempty(prompts(path, "all", source.pool + source.held_rows, source.seed, bad), path):
        if not isinstance(row["prompt"], str):
            bad(f"{path}: prompt {str(row['prompt'])[:60]!r} is no text, which check= needs")
            continue
        group = str(row.get("group", ""))
        items.append(Item(row["prompt"], str(row.get("answer", "")), group, str(row.get("rationale", "")), None, row))
    return items
