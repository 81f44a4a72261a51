"""Answers read out of model text, and compared: numbers, choices, exact match, token F1 (SQuAD's definition)."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

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
