"""Where instructions come from: proposed from inputs and outputs, or reworded from other instructions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tutelage.core.errors import ConfigError, DataError
from tutelage.engine.requests import SamplingParams
from tutelage.icl.instructions.prompts import MetaPrompts, filled
from tutelage.icl.instructions.ranked import Pair, generate

SAMPLING = SamplingParams(max_tokens=50, temperature=0.9, top_p=0.9, n=50)
"""How APE samples (Zhou et al. 2022, arXiv 2211.01910)."""
GREEDY = SamplingParams(max_tokens=50, temperature=0.0)
"""How instruction induction does (Honovich et al. 2022, arXiv 2205.10782)."""
MODES = ("forward", "reverse", "insert")
_GAP = "<extra_id_0>"
_GAPS = re.compile(r"<extra_id_\d+>")
_QUOTES = "\"'\u201c\u201d\u2018\u2019`"


def clean(text: str) -> str:
    """The instruction in what a model wrote: the first line, without a leading colon and quotes around it."""
    text = text.strip().removeprefix(":").strip()
    return text.split("\n")[0].strip().strip(_QUOTES).strip()


def distinct(texts: Iterable[str]) -> dict[str, int]:
    """How often each cleaned text came, in order of appearance; empty ones are dropped."""
    return dict(Counter(found for text in texts if (found := clean(text))))


def subsets(pairs: Sequence[Pair], count: int, size: int, seed: int) -> list[list[Pair]]:
    """``count`` random subsets of ``size`` pairs each; DataError where there are not so many pairs."""
    if len(pairs) < size:
        raise DataError(f"a proposal shows {size} pairs and there are {len(pairs)}; give more, or fewer demonstrations")
    rng = np.random.default_rng(seed)
    return [[pairs[i] for i in rng.choice(len(pairs), size, replace=False)] for _ in range(count)]


def propose(
    engine: Any,
    shown: Sequence[Sequence[Pair]],
    params: SamplingParams = SAMPLING,
    mode: str = "forward",
    prompts: MetaPrompts | None = None,
    chat: bool = False,
) -> dict[str, int]:
    """Instructions that may have led to each of the ``shown`` sets, and how often each came; one generate call.

    mode: "forward" lets the model continue the text; "reverse" and "insert" let it fill a gap at the text's start or
    inside it, which takes an encoder-decoder with gap tokens (T5's <extra_id_0>). ConfigError for a model that cannot,
    DataError where nothing but empty text was proposed.
    """
    if mode not in MODES:
        raise ConfigError(f"mode={mode!r}: expected one of {', '.join(MODES)}")
    templates = prompts or MetaPrompts()
    texts = [templates.demonstrations(pairs) for pairs in shown]
    if mode == "forward":
        asked = [filled(templates.forward, demonstrations=text) for text in texts]
    else:
        params = _filling(engine, params, mode)
        template = templates.reverse if mode == "reverse" else templates.insert
        asked = [filled(template, instruction=_GAP, demonstrations=text) for text in texts]
    return sample(engine, asked, params, "proposals", chat)


def sample(
    engine: Any, prompts: Sequence[str], params: SamplingParams, what: str, chat: bool = False
) -> dict[str, int]:
    """The distinct instructions in the answers to ``prompts``; one generate call. DataError if all are empty."""
    outputs = generate(engine, prompts, params, what, chat)
    found = distinct(_GAPS.sub("", completion.text) for output in outputs for completion in output.completions)
    if not found:
        raise DataError(f"{what}: none of {len(outputs) * params.n} answers holds any text")
    return found


def _filling(engine: Any, params: SamplingParams, mode: str) -> SamplingParams:
    """``params`` that end where the gap's filling does; ConfigError for an engine whose model fills no gaps."""
    kind = getattr(engine, "kind", "a server's model")
    known = engine.tokenizer.get_vocab() if kind == "seq2seq" else {}
    if _GAP not in known:
        why = {
            "causal": "a causal LM only continues a text",
            "masked": "a masked LM fills single tokens and does not generate",
            "seq2seq": f"the tokenizer has no gap token {_GAP}",
        }.get(kind, "a server only continues a text")
        raise ConfigError(
            f"mode={mode!r} fills a gap inside the text, and {why}; use mode='forward', or a T5-like encoder-decoder"
        )
    ends = [known[token] for token in ("<extra_id_1>",) if token in known]
    return replace(params, stop_tokens=(*params.stop_tokens, *ends))


def resample(
    engine: Any,
    instructions: Sequence[str],
    params: SamplingParams = SAMPLING,
    prompts: MetaPrompts | None = None,
    chat: bool = False,
) -> dict[str, int]:
    """Variations of each instruction and how often each came; ``params.n`` samples of each, one generate call."""
    template = (prompts or MetaPrompts()).variation
    return sample(engine, [filled(template, instruction=text) for text in instructions], params, "variations", chat)


def without(found: Mapping[str, int], known: Iterable[str]) -> dict[str, int]:
    """``found`` without what is in ``known``."""
    old = set(known)
    return {text: times for text, times in found.items() if text not in old}
