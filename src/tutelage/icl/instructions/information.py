"""Prompt choice by mutual information (Sorensen et al. 2022, arXiv 2203.11364): no labels, no search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tutelage.core.errors import DataError
from tutelage.icl.entropy import mutual_information
from tutelage.icl.examples import Example
from tutelage.icl.instructions.judges import continuation
from tutelage.icl.instructions.prompts import MetaPrompts, Render, need_input
from tutelage.icl.instructions.ranked import Ranked, best_first, score


def by_information(
    engine: Any, candidates: Sequence[str], examples: Sequence[Example], render: Render | None = None
) -> list[Ranked]:
    """Instructions (or templates, with ``render=whole_template``), the highest I(input; label) in nats first.

    Of the examples only inputs and options are read. One score call; an option's probability is that of all its tokens.
    """
    shown = render or MetaPrompts().context
    need_input(shown, candidates, examples)
    options = len(examples[0].options)
    odd = next((i for i, example in enumerate(examples) if len(example.options) != options or options < 2), None)
    if odd is not None:
        raise DataError(f"example {odd} has {len(examples[odd].options)} options; all need the same number, 2 or more")
    contexts = [(shown(candidate, example), example) for candidate in candidates for example in examples]
    pairs = [(context, continuation(context, option)) for context, example in contexts for option in example.options]
    found = np.array([one.logprob for one in score(engine, pairs, "mutual information")])
    values = mutual_information(found.reshape(len(candidates), len(examples), options))
    return best_first(Ranked(c, float(v), len(examples)) for c, v in zip(candidates, values, strict=True))
