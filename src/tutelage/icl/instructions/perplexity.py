"""SPELL (Gonen et al. 2022, arXiv 2212.04037): of many wordings of a prompt, those that the model finds least odd.

No labels are needed: the lower the perplexity of the whole prompt with its input, the better it tends to work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from tutelage.core.errors import DataError
from tutelage.engine.requests import SamplingParams
from tutelage.icl.examples import Example
from tutelage.icl.instructions.prompts import MetaPrompts, Render, filled, need_input, shows_input
from tutelage.icl.instructions.proposals import distinct, sample
from tutelage.icl.instructions.ranked import Ranked, best_first, score

PARAPHRASING = SamplingParams(max_tokens=50, temperature=0.9, top_p=0.9)
KEEP = 3
INPUTS = 1000
"""How many inputs the paper averages over."""

BackTranslate = Callable[[Sequence[str]], Iterable[str]]
"""Takes all wordings at once and gives any number of new ones: translate them into other languages and back."""


def expand(
    engine: Any,
    seeds: Sequence[str],
    params: SamplingParams = PARAPHRASING,
    back_translate: BackTranslate | None = None,
    prompts: MetaPrompts | None = None,
    chat: bool = False,
) -> list[str]:
    """The hand-written prompts ``seeds``, their paraphrases by every meta-prompt, and the back-translations, distinct.

    One generate call; ``params.n`` paraphrases a meta-prompt.
    """
    if not seeds:
        raise DataError("SPELL starts from at least one hand-written prompt; seeds is empty")
    templates = (prompts or MetaPrompts()).paraphrase
    asked = [filled(template, text=seed) for seed in seeds for template in templates]
    found = list(dict.fromkeys([*seeds, *sample(engine, asked, params, "paraphrases", chat)]))
    if back_translate is None:
        return found
    translated = back_translate(found)
    translated = [] if isinstance(translated, str) else list(translated)
    if not all(isinstance(text, str) for text in translated) or not translated:
        raise DataError("back_translate must give a list of texts, at least one")
    return list(dict.fromkeys([*found, *distinct(translated)]))


def by_perplexity(
    engine: Any, candidates: Sequence[str], examples: Sequence[Example], render: Render | None = None
) -> list[Ranked]:
    """Candidates, the lowest perplexity first; one score call. Of the examples only inputs are read.

    Scored is the whole prompt with an input and without an answer, from its first token on. The score is minus the mean
    over inputs of the mean NLL of its tokens, in nats: exp(-score) is the (geometric mean) perplexity.
    """
    shown = render or MetaPrompts().context
    need_input(shown, candidates, examples)
    pairs = [("", shown(candidate, example)) for candidate in candidates for example in examples]
    means = np.array([np.mean(one.token_logprobs) for one in score(engine, pairs, "perplexity")])
    values = means.reshape(len(candidates), len(examples)).mean(axis=1)
    return best_first(Ranked(c, float(v), len(examples)) for c, v in zip(candidates, values, strict=True))


def spell(
    engine: Any,
    seeds: Sequence[str],
    examples: Sequence[Example],
    keep: int = KEEP,
    params: SamplingParams = PARAPHRASING,
    back_translate: BackTranslate | None = None,
    render: Render | None = None,
    prompts: MetaPrompts | None = None,
    chat: bool = False,
) -> list[Ranked]:
    """The ``keep`` wordings of the hand-written prompts ``seeds`` with the lowest perplexity over the inputs of the
    (first 1,000) examples; two engine calls. A paraphrase that lost the place of the input is dropped."""
    shown = render or (prompts or MetaPrompts()).context
    need_input(shown, seeds, examples)
    wordings = expand(engine, seeds, params, back_translate, prompts, chat)
    whole = [wording for wording in wordings if shows_input(shown, wording, examples[0])]
    return by_perplexity(engine, whole, examples[:INPUTS], shown)[:keep]
