"""Answers read out of model text, and compared: numbers, choices, yes and no, exact match, token F1 (SQuAD's)."""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Literal

AnswerKind = Literal["number", "choice", "yes_no", "text"]
"""What an answer is: a number, a letter of the options, yes or no, or words."""
_NUMBER = re.compile(r"[-+]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+)(?:[eE][-+]?\d+)?")
# "A dog ran" names no choice; "A is right" and "A because ..." do.
_ARTICLE_A = r"(?!(?<=A) +(?!is\b|because\b|since\b|as\b|and\b|or\b)[a-z])"
_MARKED = re.compile(r"(?:####|answer\s*(?:is|:|=)|答案(?:是|为|：|:))", re.IGNORECASE)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_HAN = re.compile(r"([\u3400-\u4dbf\u4e00-\u9fff])")


def _after_mark(text: str) -> str | None:
    marks = list(_MARKED.finditer(text))
    return text[marks[-1].end() :] if marks else None


def _value(found: re.Match[str]) -> float:
    text, start = found.group(), found.start()
    before = found.string[start - 1] if start else ""
    # "7-5" is a difference, not the number -5: a sign right behind a digit or a letter is an operator.
    if text[0] in "+-" and (before.isalnum() or before == ")"):
        text = text[1:]
    return float(text.replace(",", ""))


def extract_number(text: str) -> float | None:
    """The answer's number: the first after "####", "answer is", "answer:" (also 答案), else the last one; or None."""
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-")
    marked = _after_mark(text)
    if marked is not None and (found := _NUMBER.search(marked)):
        return _value(found)
    every = list(_NUMBER.finditer(text))
    return _value(every[-1]) if every else None


def extract_choice(text: str, choices: Sequence[str] = "ABCD") -> str | None:
    """The choice that the text names, or None.

    Looked for behind "answer is" first, then at the start ("B.", "(B)"), in brackets, and alone, where the last one
    named wins. Letters are matched as they are written and must stand alone; words ("positive") in any case.
    """
    words = all(len(choice) > 1 for choice in choices)
    flags = re.IGNORECASE if words else 0
    written = {choice.lower() if words else choice: choice for choice in choices}
    names = "|".join(sorted(map(re.escape, choices), key=len, reverse=True))
    stop = r"(?![A-Za-z0-9'])"
    at_start = re.compile(rf"\s*[(\[\"']?({names}){stop}(?=\s*(?:[)\].:,;\"'。，：；]|$))", flags)
    bracketed = re.compile(rf"[(\[{{]({names})[)\]}}]", flags)
    alone = re.compile(rf"(?<![A-Za-z0-9'])({names}){stop}{'' if words else _ARTICLE_A}", flags)
    for part in (_after_mark(text), text):
        if not part:
            continue
        start = at_start.match(part) or (alone.match(part.lstrip()) if part is not text else None)
        found = [start.group(1)] if start else bracketed.findall(part) or alone.findall(part)
        if found:
            return written[found[-1].lower() if words else found[-1]]
    return None


def normalise(text: str) -> str:
    """SQuAD's form: NFKC, lower case, no punctuation, no articles, single blanks."""
    text = unicodedata.normalize("NFKC", text).lower()
    text = "".join(" " if unicodedata.category(c)[0] == "P" and c not in string.punctuation else c for c in text)
    text = text.translate(str.maketrans("", "", string.punctuation))
    return " ".join(_ARTICLES.sub(" ", text).split())


def _golds(gold: str | Sequence[str]) -> list[str]:
    return [gold] if isinstance(gold, str) else list(gold)


def exact_match(answer: str, gold: str | Sequence[str]) -> float:
    """1.0 where the normalised answer equals one of the golds, else 0.0."""
    return float(normalise(answer) in {normalise(g) for g in _golds(gold)})


def _tokens(text: str) -> list[str]:
    return _HAN.sub(r" \1 ", normalise(text)).split()  # a Chinese character counts as a word


def token_f1(answer: str, gold: str | Sequence[str]) -> float:
    """Harmonic mean of word precision and recall, the best over the golds; two empty answers agree (1.0)."""
    best = 0.0
    for one in _golds(gold):
        said, wanted = _tokens(answer), _tokens(one)
        common = sum((Counter(said) & Counter(wanted)).values())
        if not said or not wanted:
            best = max(best, float(said == wanted))
        elif common:
            best = max(best, 2 * common / (len(said) + len(wanted)))
    return best


_FEW_SHOT_MARK = "The answer is"
_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_QUOTES = "\"'“”‘’`*"


def number_text(value: float) -> str:
    """A number as answers write it: no thousands' commas, no trailing ".0"."""
    if math.isfinite(value) and value == int(value):
        return str(int(value))
    return f"{value:.12g}"


def cleanse(text: str, kind: AnswerKind, letters: str = "ABCDE", few_shot: bool = False) -> str | None:
    """The answer by Kojima et al.'s rules (2022, "answer cleansing"), letter for letter; None where there is none.

    Zero-shot: the first match of what followed the answer trigger. ``few_shot``: the first one after the last
    "The answer is", or the text's last where those words are missing. Known to be naive ("Apple" names choice A):
    kept as published, so that figures compare; ``extract_answer`` is the careful one.
    """
    part = text.split(_FEW_SHOT_MARK)[-1] if few_shot else text
    if kind == "number":
        found = re.findall(r"-?\d+\.?\d*", part.replace(",", ""))
    elif kind == "choice":
        found = re.findall("|".join(map(re.escape, letters)), part)
    elif kind == "yes_no":
        words = re.sub(r"[\"'\n.\s:,]", " ", part.lower()).split()
        found = [word for word in words if word in ("yes", "no")]
    else:
        whole = re.sub(r"[\"'\n.\s]", "", part)
        found = [whole] if whole else []
    if not found:
        return None
    last = few_shot and _FEW_SHOT_MARK not in text
    return found[-1 if last else 0].removesuffix(".") or None


def extract_answer(text: str, kind: AnswerKind, letters: str = "ABCDE") -> str | None:
    """The answer that a chain of thought ends with, or None.

    Behind the last "####", "answer is" or "answer:" where there is one; else the last number, choice, yes or no of the
    text. Words have to be marked: they are what follows on that line, without quotes and the final stop.
    """
    if kind == "number":
        value = extract_number(text)
        return None if value is None else number_text(value)
    if kind == "choice":
        return extract_choice(text, letters)
    marked = _after_mark(text)
    if kind == "yes_no":
        if marked is not None and (first := _YES_NO.search(marked)):
            return first.group().lower()
        every = _YES_NO.findall(text)
        return every[-1].lower() if every else None
    if marked is None:
        return None
    line = next((line for line in marked.lstrip(" :").splitlines() if line.strip()), "")
    line = re.split(r"[.!?]\s", line.strip())[0].rstrip(".!").strip().strip(_QUOTES).strip()
    return line.rstrip(".!") or None


def same_mathematics(answer: str, gold: str) -> bool:
    """Whether two pieces of mathematics are equal.

    Plain numbers by value (to 1e-6 of it); everything else ("1/2", "\\\\frac{1}{2}", "x+1") by math-verify.
    """
    values = [_plain_number(side) for side in (answer, gold)]
    if values[0] is not None and values[1] is not None:
        return math.isclose(values[0], values[1], rel_tol=1e-6, abs_tol=1e-9)
    import math_verify  # and with it sympy: half a second

    # its time limits are signals, which only the main thread may set: none here, as answers are short
    read = [math_verify.parse(f"${side}$", parsing_timeout=None) for side in (gold, answer)]
    return bool(math_verify.verify(*read, timeout_seconds=None))


def _plain_number(text: str) -> float | None:
    text = text.strip().strip("$%").replace(",", "").rstrip(".")
    return float(text) if _NUMBER.fullmatch(text) else None


def same_answer(answer: str | None, gold: str, kind: AnswerKind) -> bool:
    """Whether an extracted answer is the gold one; None never is. Words: letter case, blanks and stops do not count."""
    if answer is None:
        return False
    if kind == "number":
        return same_mathematics(answer, gold)
    if kind == "choice":
        return answer.strip("() .") == gold.strip("() .")
    return _letters(answer) == _letters(gold)


def answer_key(answer: str, kind: AnswerKind) -> str:
    """What makes two paths vote for the same answer, without looking at the gold one."""
    if kind == "number":
        value = _plain_number(answer)
        return answer.strip() if value is None else number_text(value)
    return answer.strip("() .") if kind == "choice" else _letters(answer)


def _letters(text: str) -> str:
    """Letters and digits alone, in lower case: "y a j o" is "yajo" (articles stay, unlike in `normalise`)."""
    kept = [c for c in unicodedata.normalize("NFKC", text).lower() if unicodedata.category(c)[0] not in "PZC"]
    return "".join(kept) or text.strip()
