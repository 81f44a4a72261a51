"""Execution accuracy's four metrics, as instruction induction defines them (Honovich et al. 2022, arXiv 2205.10782).

They are not text/answers.py's (SQuAD's), which drop articles: here an answer may be the letter "a".
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from tutelage.core.errors import ConfigError

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def words(text: str) -> list[str]:
    """Words of the first line up to its first full stop: lower case, no punctuation, hyphens as blanks, no "and"."""
    text = text.strip()  # before " and " goes, as the blank that an answer begins with would make its first word one
    for dropped in (" and ", "Sentence 1:", "Sentence 2:"):
        text = text.replace(dropped, " ")
    text = text.strip().split("\n")[0].split(".")[0].lower().replace("-", " ")
    return text.translate(_NO_PUNCTUATION).split()


def _exact(said: Sequence[str], gold: Sequence[str]) -> float:
    return float(said == gold)


def _f1(said: Sequence[str], gold: Sequence[str]) -> float:
    common = sum((Counter(said) & Counter(gold)).values())
    return 2 * common / (len(said) + len(gold)) if common else 0.0


def _exact_set(said: Sequence[str], gold: Sequence[str]) -> float:
    return float(set(said) == set(gold))


def _contains(said: Sequence[str], gold: Sequence[str]) -> float:
    found = re.search(rf"\b{re.escape(' '.join(gold))}\b", " ".join(said)) if gold else None
    return float(found is not None)


_METRICS: Mapping[str, Callable[[Sequence[str], Sequence[str]], float]] = {
    "em": _exact,
    "f1": _f1,
    "exact-set": _exact_set,
    "contains": _contains,
}

Metric = Callable[[str, Sequence[str]], float]
"""metric(text, right answers) -> 0 to 1."""


def metric(name: str) -> Metric:
    """The metric of that name: "em" | "f1" | "exact-set" | "contains"; the best over the right answers."""
    compare = _METRICS.get(name)
    if compare is None:
        raise ConfigError(f"metric={name!r}: expected one of {', '.join(_METRICS)}")

    def best(text: str, answers: Sequence[str]) -> float:
        said = words(text)
        return max(compare(said, words(answer)) for answer in answers)

    return best
