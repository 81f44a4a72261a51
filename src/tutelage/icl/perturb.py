"""Demonstrations changed on purpose: "Rethinking the Role of Demonstrations" (Min et al. 2022b), sections 4 and 5.

Each condition changes the demonstrations alone; where labels get other words for the queries too, it says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tutelage.core.errors import ConfigError, DataError
from tutelage.icl.examples import Example
from tutelage.icl.prompts import Parts, with_answer, with_fields
from tutelage.schoolroom.words import OPPOSITES, PLURALS

WORDS = sorted({word for pair in (*OPPOSITES, *PLURALS) for word in pair})
"""English words that stand for labels in the english_words conditions."""
Change = Callable[[Sequence[Example], np.random.Generator, int], list[Example]]
"""change(demonstrations, random draws of this very set, a number that is one for all sets of a seed)"""


@dataclass(frozen=True)
class Condition:
    """One way to change demonstrations."""

    change: Change
    parts: Parts = "both"
    queries: Callable[[Example, int], Example] | None = None
    """Where the queries' labels change too, by the same number as the demonstrations'."""
    per_query: bool = False
    """Whether demonstrations are drawn anew for each query (ood_inputs)."""


@dataclass
class Corpus:
    """Sentences from elsewhere, for ood_inputs."""

    sentences: Sequence[str]
    _lengths: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self._lengths = np.array([len(s.split()) for s in self.sentences])

    def draw(self, count: int, words: int, rng: np.random.Generator) -> list[str]:
        """Distinct sentences about as long as `words`: chosen with probability ~ exp(-(length - words)^2 / 50)."""
        weights = np.exp(-((self._lengths - words) ** 2) / 50)
        if np.count_nonzero(weights) < count:  # all far longer or shorter: the nearest ones
            weights = 1.0 / (1 + np.abs(self._lengths - words))
        if len(self.sentences) < count:
            raise DataError(f"corpus: {len(self.sentences)} sentences, and {count} demonstrations need one each")
        chosen = rng.choice(len(self.sentences), count, replace=False, p=weights / weights.sum())
        return [self.sentences[i] for i in chosen]


def _options(e: Example) -> tuple[str, ...]:
    if len(e.options) < 2:
        raise DataError("this condition changes labels, and the task has no options to choose from")
    return e.options


def _gold(demos: Sequence[Example], rng: np.random.Generator, state: int) -> list[Example]:
    return list(demos)


def _random(demos: Sequence[Example], rng: np.random.Generator, state: int) -> list[Example]:
    """Labels uniform over the options."""
    return [with_answer(e, _options(e)[rng.integers(len(e.options))]) for e in demos]


def _wrong(e: Example, rng: np.random.Generator) -> Example:
    others = [o for i, o in enumerate(_options(e)) if i != e.gold]
    return with_answer(e, others[rng.integers(len(others))])


def _correct(percent: int) -> Change:
    """k * percent / 100 of the demonstrations, at random places, keep the gold label; the others get a wrong one."""

    def change(demos: Sequence[Example], rng: np.random.Generator, state: int) -> list[Example]:
        kept = set(rng.permutation(len(demos))[: len(demos) * percent // 100].tolist())
        return [e if i in kept else _wrong(e, rng) for i, e in enumerate(demos)]

    return change


def _shift(e: Example) -> Example:
    return with_answer(e, _options(e)[(e.gold + 1) % len(e.options)])


def _true_distribution(demos: Sequence[Example], rng: np.random.Generator, state: int) -> list[Example]:
    """Labels drawn from the demonstrations' own distribution of labels."""
    answers = [e.answer for e in demos]
    return [with_answer(e, answers[rng.integers(len(answers))]) for e in demos]


def _words(e: Example, rng: np.random.Generator) -> dict[str, str]:
    """An injective map from the options to English words; the same for the same generator state and options."""
    return dict(zip(e.options, rng.choice(WORDS, len(e.options), replace=False).tolist()))



def _english(random_labels: bool) -> Change:
    def change(demos: Sequence[Example], rng: np.random.Generator, state: int) -> list[Example]:
        out = []
        for i, e in enumerate(demos):
            # one map for a classification task; fresh words for each example where every one has options of its own
            same = all(d.options == demos[0].options for d in demos)
            table = _words(e, np.random.default_rng(state if same else [state, i]))
            answer = _options(e)[rng.integers(len(e.options))] if random_labels else e.answer
            out.append(replace(e, options=tuple(table.values()), answer=table[answer]))
        return out

    return change


def _english_query(e: Example, state: int) -> Example:
    table = _words(e, np.random.default_rng(state))
    return replace(e, options=tuple(table.values()), answer=table.get(e.answer, e.answer))


CONDITIONS: dict[str, Condition] = {
    "gold": Condition(_gold),
    "random": Condition(_random),
    **{f"correct_{p}": Condition(_correct(p)) for p in (75, 50, 25, 0)},
    "wrong": Condition(_correct(0)),
    "true_distribution": Condition(_true_distribution),
    "permuted": Condition(lambda demos, rng, state: [_shift(e) for e in demos], queries=lambda e, state: _shift(e)),
    "no_labels": Condition(_gold, parts="input"),
    "labels_only": Condition(_random, parts="output"),
    "ood_inputs": Condition(_random, per_query=True),
    "english_words": Condition(_english(True)),
    "english_words_gold": Condition(_english(False), queries=_english_query),
}
"""Name -> condition. `correct_0` and `wrong` are one; `none` (no demonstrations) is shots=0."""


def condition(name: str) -> Condition:
    """ConfigError for an unknown name."""
    if name not in CONDITIONS:
        raise ConfigError(f"condition={name!r}; one of {', '.join(CONDITIONS)}")
    return CONDITIONS[name]


def changed(
    name: str, demos: Sequence[Example], seed: int, number: int = 0, query: Example | None = None,
    corpus: Corpus | None = None,
) -> list[Example]:  # fmt: skip
    """The demonstrations under a condition. number: of the set, so that sets of one seed draw independently; query and
    corpus: for ood_inputs alone."""
    rng = np.random.default_rng([seed, 17, number])
    chosen = condition(name)
    out = chosen.change(demos, rng, seed)
    if chosen.per_query:
        if corpus is None:
            raise ConfigError("condition=ood_inputs needs corpus=FILE, sentences from elsewhere (one a line)")
        assert query is not None
        texts = corpus.draw(len(out), len(query.text.split()), rng)
        out = [with_fields(e, {key: text for key in e.fields} or {"text": text}) for e, text in zip(out, texts)]
    return out


def changed_query(name: str, query: Example, seed: int) -> Example:
    """The query under a condition: other label words where the demonstrations have them as well."""
    change = condition(name).queries
    return change(query, seed) if change else query
