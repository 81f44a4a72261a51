"""Questions with one right answer, read from the files that reasoning is measured on.

Understood by their keys, not by their names: GSM8K; MultiArith, AddSub and SingleEq; SVAMP; AQuA; CommonsenseQA;
BIG-bench tasks with target scores (StrategyQA, Date, object tracking); BIG-Bench Hard; coin flip and last letters; any
rows with a question and an answer; and .txt transcripts of "Q: ... A: ..." as papers print their exemplars.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.core.errors import DataError
from tutelage.core.records import BadRows
from tutelage.icl.examples import LETTERS
from tutelage.text.answers import AnswerKind, extract_answer, number_text, same_answer
from tutelage.text.corpus import corpus_files, read_rows

Row = dict[str, Any]
_CALCULATOR = re.compile(r"<<[^>]*>>")
_OPTION = re.compile(r"^\s*\(?([A-Z])\)\s*(.*)$")
_ASKED = "Let's think step by step."
_NUMBER = re.compile(r"-?[\d,]*\.?\d+")


@dataclass(frozen=True)
class Problem:
    """A question and its gold answer.

    ``answer``: a number ("1204.5"), a letter of ``options`` ("B"), "yes" or "no", or words, as ``kind`` says.
    ``rationale``: a chain of thought that leads to it, where the data has one. DataError where they do not fit.
    """

    question: str
    answer: str
    options: tuple[str, ...] = ()
    kind: AnswerKind = "number"
    rationale: str = ""

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise DataError("the question is empty")
        if self.kind == "choice":
            if not 2 <= len(self.options) <= len(LETTERS):
                raise DataError(f"{len(self.options)} options, expected 2 to {len(LETTERS)}")
            if len(self.answer) != 1 or self.answer not in self.letters:
                raise DataError(f"the answer is {self.answer!r}, expected one of {', '.join(self.letters)}")
        elif self.kind == "yes_no" and self.answer not in ("yes", "no"):
            raise DataError(f"the answer is {self.answer!r}, expected 'yes' or 'no'")
        elif self.kind == "number" and not _NUMBER.fullmatch(self.answer):
            raise DataError(f"the answer is {self.answer!r}, expected a number")
        elif not self.answer.strip():
            raise DataError("the answer is empty")

    @property
    def letters(self) -> str:
        """The letters of the options ("ABCDE")."""
        return LETTERS[: len(self.options)]

    @property
    def text(self) -> str:
        """The question as it is asked, with its options behind it."""
        if self.kind != "choice":
            return self.question
        shown = " ".join(f"({letter}) {option}" for letter, option in zip(self.letters, self.options, strict=True))
        return f"{self.question} Answer Choices: {shown}"

    @property
    def shown_answer(self) -> str:
        """The answer as a demonstration writes it."""
        return f"({self.answer})" if self.kind == "choice" else self.answer

    def grade(self, prediction: str | None) -> bool:
        """Whether an extracted answer is right."""
        return same_answer(prediction, self.answer, self.kind)

    def read(self, text: str) -> str | None:
        """The answer that a chain of thought ends with (``text.answers.extract_answer``)."""
        return extract_answer(text, self.kind, self.letters)


def read_problems(
    path: str | Path,
    limit: int | None = None,
    *,
    question: str = "question",
    answer: str = "answer",
    rationale: str = "rationale",
    options: str = "options",
    kind: AnswerKind | None = None,
    seed: int = 0,
    bad: BadRows | None = None,
) -> list[Problem]:
    """The first ``limit`` problems of a file or folder (None: all), in order.

    The four keys name the columns of plain rows; the known sets are recognised by theirs. ``kind``: of plain rows; by
    default yes_no or number where all answers of the file are such, choice where there are options, else text.
    ``seed``: order of the options of BIG-bench tasks, which list the right one first (fixed by seed and question).
    ``bad``: what becomes of rows that are no problem; by default the first is a DataError naming file, line or example,
    and key.
    """
    bad = bad or BadRows()
    found: list[Problem] = []
    names = {"question": question, "answer": answer, "rationale": rationale, "options": options}
    files = [Path(path)] if Path(path).suffix == ".txt" else corpus_files(path)
    for file in files:
        if file.suffix == ".txt" and file != Path(path):
            continue  # a folder's notes, and prompts that lie beside the data
        found += _read_file(file, names, kind, seed, bad)
        if limit is not None and len(found) >= limit:
            break
    if not found:
        raise DataError(f"{path}: no problems in it; expected rows such as {{\"question\": ..., \"answer\": ...}}")
    return found[:limit]


def _read_file(
    file: Path, names: dict[str, str], kind: AnswerKind | None, seed: int, bad: BadRows
) -> list[Problem]:
    drafts = list(_transcript(file) if file.suffix == ".txt" else _drafts(file, names, seed, bad))
    guessed = kind or _guess([draft for _, draft in drafts if "kind" not in draft])
    problems = []
    for where, draft in drafts:
        try:
            problems.append(_finish(draft, guessed))
        except DataError as fault:
            bad(f"{where}: {fault}")
    return problems


def _drafts(file: Path, names: dict[str, str], seed: int, bad: BadRows) -> Iterator[tuple[str, Row]]:
    """What each row says; one without "kind" takes that of its file."""
    for where, row in _rows(file):
        reader = next((read for keys, read in FORMATS.values() if keys <= row.keys()), None)
        try:
            known = reader is not None and names["question"] == "question"
            draft = reader(row, seed) if known else _plain(row, names)  # type: ignore[misc]
        except DataError as fault:
            bad(f"{where}: {fault}")
            continue
        yield where, draft


def _finish(draft: Row, guessed: AnswerKind) -> Problem:
    """The problem of a draft; one without "kind" takes that of its file."""
    kind: AnswerKind = draft.get("kind") or ("choice" if draft.get("options") else guessed)
    answer = str(draft["answer"]).strip()
    if kind == "yes_no":
        answer = answer.lower()
    elif kind == "number" and "kind" not in draft:
        answer = _number(answer)
    elif kind == "choice":
        answer = answer.strip("() .")
        if answer not in LETTERS and answer in draft["options"]:
            answer = LETTERS[draft["options"].index(answer)]
    return Problem(draft["question"].strip(), answer, tuple(draft.get("options", ())), kind, draft.get("rationale", ""))


def _guess(drafts: list[Row]) -> AnswerKind:
    answers = [str(draft["answer"]).strip() for draft in drafts]
    if all(answer.lower() in ("yes", "no") for answer in answers):
        return "yes_no"
    return "number" if all(_NUMBER.fullmatch(answer) for answer in answers) else "text"


def _rows(file: Path) -> Iterator[tuple[str, Row]]:
    """Rows of a file: one object a line, a JSON list, or the "examples" of one object."""
    if file.suffix == ".json":
        try:
            whole = json.loads(file.read_bytes())
        except ValueError:  # lines of objects; read_rows tells what is wrong with anything else
            whole = None
        if isinstance(whole, dict) and isinstance(whole.get("examples"), list):
            for number, row in enumerate(whole["examples"], 1):
                if not isinstance(row, dict):
                    raise DataError(f"{file}: example {number} is a {type(row).__name__}, expected an object")
                yield f"{file}: example {number}", row
            return
    yield from read_rows(file)


def _transcript(file: Path) -> Iterator[tuple[str, Row]]:
    r"""Exemplars written as "Q: ...\nA: ...": the answer is what the rationale ends with."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from None
    starts = [match.start() for match in re.finditer(r"^Q:", text, re.MULTILINE)]
    for start, end in zip(starts, [*starts[1:], len(text)]):
        where = f"{file}:{text.count(chr(10), 0, start) + 1}"
        question, mark, answer = text[start + 2 : end].partition("\nA:")
        ending = list(re.finditer(r"(?:####|(?:(?:so|therefore,?|thus,?) )?the answer is:?)", answer, re.IGNORECASE))
        if not mark or not ending:
            raise DataError(f"{where}: expected 'Q: ...', a line 'A: ...', and 'The answer is ...' or '####' in it")
        last = ending[-1]
        draft = _bbh({"input": question.strip(), "target": answer[last.end() :].strip().rstrip(".")}, 0)
        thought = " ".join(_CALCULATOR.sub("", answer[: last.start()]).split())
        yield where, {**draft, "rationale": thought.removeprefix(_ASKED).strip()}


def _need(row: Row, key: str, kind: type | tuple[type, ...], words: str) -> Any:
    """``row[key]``, of the kind wanted."""
    if key not in row:
        raise DataError(f"no {key!r} (keys: {', '.join(map(str, row)) or 'none'}), expected {words}")
    if not isinstance(row[key], kind) or isinstance(row[key], bool):
        raise DataError(f"{key!r} is a {type(row[key]).__name__}, expected {words}")
    return row[key]


def _number(value: Any) -> str:
    try:
        return number_text(float(str(value).strip().replace(",", "")))
    except ValueError:
        raise DataError(f"the answer is {str(value).strip()!r}, expected a number") from None


def _gsm8k(row: Row) -> Row:
    """The gold answer stands behind "####"; the calculator's <<notes>> are no part of what a model should write."""
    thought, _, answer = row["answer"].rpartition("####")
    steps = [line.strip() for line in _CALCULATOR.sub("", thought).splitlines() if line.strip()]
    ended = (line if line[-1] in ".!?" else line + "." for line in steps)
    return {"question": row["question"], "answer": _number(answer), "kind": "number", "rationale": " ".join(ended)}


def _word_problem(row: Row, seed: int) -> Row:
    solutions = _need(row, "lSolutions", list, "a list of one number")
    if len(solutions) != 1:
        raise DataError(f"'lSolutions' has {len(solutions)} items, expected one number")
    question = _need(row, "sQuestion", str, "the question")
    return {"question": " ".join(question.split()), "answer": _number(solutions[0]), "kind": "number"}


def _svamp(row: Row, seed: int) -> Row:
    body, asked = _need(row, "Body", str, "the story").strip(), _need(row, "Question", str, "the question").strip()
    story = body if body.endswith((".", "?", "!")) else body + "."
    return {"question": f"{story} {asked}", "answer": _number(row["Answer"]), "kind": "number"}


def _aqua(row: Row, seed: int) -> Row:
    listed = _need(row, "options", list, 'a list such as ["A)5", "B)6"]')
    options = []
    for letter, option in zip(LETTERS, listed):
        match = _OPTION.match(str(option))
        if match is None or match.group(1) != letter:
            raise DataError(f"'options' has {option!r} where option {letter} belongs, expected {letter}) and its text")
        options.append(match.group(2).strip())
    right = _need(row, "correct", str, "the right option's letter")
    return {
        "question": _need(row, "question", str, "the question"), "answer": right, "options": options, "kind": "choice",
        "rationale": " ".join(str(row.get("rationale", "")).split()),
    }  # fmt: skip


def _csqa(row: Row, seed: int) -> Row:
    asked = _need(row, "question", dict, 'an object with "stem" and "choices"')
    choices = _need(asked, "choices", list, 'a list of {"label", "text"}')
    if [c.get("label") for c in choices] != list(LETTERS[: len(choices)]):
        raise DataError(f"'choices' are labelled {[c.get('label') for c in choices]}, expected A, B, C ... in order")
    options = [_need(c, "text", str, "an option's text") for c in choices]
    stem, right = _need(asked, "stem", str, "the question"), _need(row, "answerKey", str, "the right option's letter")
    return {"question": stem, "answer": right, "options": options, "kind": "choice"}


def _bigbench(row: Row, seed: int) -> Row:
    scores = _need(row, "target_scores", dict, 'an object such as {"Yes": 1, "No": 0}')
    question = _need(row, "input", str, "the question")
    right = [option for option, score in scores.items() if score == 1]
    if len(right) != 1:
        raise DataError(f"'target_scores' has {len(right)} options of score 1, expected one")
    if {option.lower() for option in scores} == {"yes", "no"}:
        # StrategyQA's "target" says the answer and then why
        reason = re.sub(r"^(yes|no)\W+", "", str(row.get("target", "")), flags=re.IGNORECASE)
        return {"question": question, "answer": right[0], "kind": "yes_no", "rationale": " ".join(reason.split())}
    options = list(scores)
    order = np.random.default_rng([seed, zlib.crc32(question.encode())]).permutation(len(options))
    options = [options[i] for i in order]
    text = question.strip()
    if not text.endswith((".", "?", "!")):
        text += " ___. Which choice fits?"  # object tracking ends in the middle of a sentence
    return {"question": text, "answer": LETTERS[options.index(right[0])], "options": options, "kind": "choice"}


def _bbh(row: Row, seed: int) -> Row:
    text = _need(row, "input", str, "the question").strip().removeprefix("Question: ")
    target = _need(row, "target", str, "the answer").strip()
    question, _, listed = text.partition("\nOptions:\n")
    options = [match.group(2).strip() for line in listed.splitlines() if (match := _OPTION.match(line))]
    if options:
        return {"question": question, "answer": target.strip("() "), "options": options, "kind": "choice"}
    return {"question": question, "answer": target}  # "- Yes / - No" and open answers: by all answers of the file


def _plain(row: Row, names: dict[str, str]) -> Row:
    question = _need(row, names["question"], str, "the question")
    answer = _need(row, names["answer"], (str, int, float), "the answer")
    if isinstance(answer, str) and "####" in answer:
        return _gsm8k({"question": question, "answer": answer})
    draft: Row = {"question": question, "answer": number_text(answer) if isinstance(answer, float) else answer}
    if row.get(names["options"]):
        draft["options"] = [str(option) for option in _need(row, names["options"], list, "a list of options")]
    if row.get(names["rationale"]):
        draft["rationale"] = _need(row, names["rationale"], str, "a chain of thought")
    return draft


FORMATS: dict[str, tuple[frozenset[str], Callable[[Row, int], Row]]] = {
    "math word problems": (frozenset({"sQuestion", "lSolutions"}), _word_problem),
    "svamp": (frozenset({"Body", "Question", "Answer"}), _svamp),
    "aqua": (frozenset({"question", "options", "correct"}), _aqua),
    "commonsenseqa": (frozenset({"question", "answerKey"}), _csqa),
    "big-bench": (frozenset({"input", "target_scores"}), _bigbench),
    "big-bench hard": (frozenset({"input", "target"}), _bbh),
}
"""What tells each known set: its keys, and the function that reads a row. All other rows are plain."""

