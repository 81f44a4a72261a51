"""Training documents that hold a run of words of an evaluation set (Brown et al. 2020, app. C: 13-grams)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tutelage.text.ngrams import ngram_hashes, words

COMMON = 10
"""A gram in more training documents than this is a common phrase (a law's wording, a proverb) and does not count."""


@dataclass(frozen=True)
class Evaluations:
    """The n-grams of evaluation sets. `grams`: uint64 [G], ascending; `owners`: int64 [P, 2], the pairs (gram, example)
    by their numbers; `names`: the set of each example; `short`: how many examples of a set have fewer than n words and
    so cannot be told."""

    n: int
    grams: np.ndarray
    owners: np.ndarray
    names: list[str]
    short: dict[str, int]

    @classmethod
    def of(cls, sets: Mapping[str, Iterable[Sequence[str]]], n: int) -> Evaluations:
        """From the examples of each set: an example is one or several texts (question, answer, options)."""
        names: list[str] = []
        short: dict[str, int] = {}
        hashes, examples = [np.empty(0, dtype=np.uint64)], [np.empty(0, dtype=np.int64)]
        for name, rows in sets.items():
            short[name] = 0
            for texts in rows:
                found = np.unique(np.concatenate([ngram_hashes(words(text), n) for text in texts] or hashes[:1]))
                short[name] += not len(found)
                hashes.append(found)
                examples.append(np.full(len(found), len(names)))
                names.append(name)
        grams, inverse = np.unique(np.concatenate(hashes), return_inverse=True)
        return cls(n, grams, np.stack([inverse, np.concatenate(examples)], 1), names, short)

    def found_in(self, text_words: list[str]) -> np.ndarray:
        """int64: the numbers of the grams that a document holds, each once."""
        hashes = ngram_hashes(text_words, self.n)
        if not len(self.grams) or not len(hashes):
            return np.empty(0, dtype=np.int64)
        at = np.minimum(np.searchsorted(self.grams, hashes), len(self.grams) - 1)
        return np.unique(at[self.grams[at] == hashes])

    def tally(self, hits: np.ndarray) -> tuple[np.ndarray, dict[str, dict[str, Any]]]:
        """(bool [G]: which grams count, a row of numbers for each set) from the pairs (document, gram) of the training
        documents, int64 [H, 2]."""
        documents = np.bincount(hits[:, 1], minlength=len(self.grams))
        counts = (documents > 0) & (documents <= COMMON)
        dirty = np.unique(self.owners[counts[self.owners[:, 0]], 1]).tolist() if len(self.grams) else []
        table = {name: {"examples": 0, "too_short": few, "contaminated": 0} for name, few in self.short.items()}
        for name in self.names:
            table[name]["examples"] += 1
        for example in dirty:
            table[self.names[example]]["contaminated"] += 1
        return counts, table
