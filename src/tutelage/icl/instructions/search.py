"""One instruction for a task, by any of the methods: what `instructions=` of in-context learning names.

Only training examples are read, and candidates are tried in the task's own format without demonstrations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from tutelage.core.errors import ConfigError, DataError
from tutelage.icl.examples import Example
from tutelage.icl.instructions.engineer import ApeSettings, ape
from tutelage.icl.instructions.induction import induce, induction_prompts
from tutelage.icl.instructions.information import by_information
from tutelage.icl.instructions.judges import Judge, execution_judge, likelihood_judge
from tutelage.icl.instructions.metrics import metric
from tutelage.icl.instructions.perplexity import PARAPHRASING, by_perplexity, expand
from tutelage.icl.instructions.prompts import MetaPrompts, in_format, load_prompts
from tutelage.icl.instructions.ranked import Ranked, pairs_of
from tutelage.icl.prompts import Format

METHODS = ("ape", "induction", "perplexity", "mutual_information")
FROM_PAIRS = ("ape", "induction")
"""Those that read instructions out of inputs and answers; the others reword hand-written ones and read no labels."""


class InstructionSearch(BaseModel):
    """How much is spent on the search, and on what."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    candidates: int = Field(default=50, ge=1)
    """About how many instructions are asked for: ape samples so many in all, induction writes one behind so many
    prompts, perplexity and mutual_information ask for so many other wordings."""
    examples: int = Field(default=50, ge=1)
    """Training examples that instructions are tried on; proposals show others."""
    shown: int = Field(default=5, ge=1)
    """Examples that one proposal shows (ape, induction)."""
    by: Literal["auto", "likelihood", "execution"] = "auto"
    """What makes an instruction of ape or induction good: log P(right answer), or exact match of the greedy answer,
    for which a server needs no log-probs. auto: likelihood for ape, execution for induction, as in the papers."""
    rounds: int = Field(default=20, ge=0)
    """Of ape's bandit; 0 tries every instruction on every example."""
    iterations: int = Field(default=0, ge=0)
    """Of ape's Monte-Carlo search: the best are reworded, and what is new is tried."""
    seeds: list[str] = []
    """Hand-written instructions that perplexity and mutual_information start from; else the one of `instruction`."""
    answer_tokens: int = Field(default=30, ge=1)
    """Of an answer that is carried out (by=execution)."""
    prompts: str | None = None
    """TOML file of meta-prompts in place of ours."""


def check_search(method: str, settings: InstructionSearch, instruction: str) -> None:
    """ConfigError for an unknown method, and for one with nothing to start from."""
    if method not in METHODS:
        raise ConfigError(f"instructions={method!r}; one of none, {', '.join(METHODS)}")
    if method not in FROM_PAIRS and not settings.seeds and not instruction:
        raise ConfigError(
            f"instructions={method} chooses among wordings of a hand-written instruction: give instruction='...' or "
            "search.seeds=['...', '...']; instructions=ape and induction need none"
        )


def search_instructions(
    method: str,
    engine: Any,
    examples: Sequence[Example],
    form: Format,
    settings: InstructionSearch | None = None,
    seed: int = 0,
    instruction: str = "",
    proposer: Any = None,
    chat: bool = False,
) -> list[Ranked]:
    """Instructions for the task of the training ``examples``, best first.

    proposer: the engine that writes candidates, ``engine`` if None; ``engine`` itself always judges. chat: candidates
    are asked for through the chat template. Raises ConfigError for an engine without the log-probs that the method
    needs, DataError for too few examples.
    """
    wanted = settings or InstructionSearch()
    check_search(method, wanted, instruction)
    writer = proposer or engine
    prompts = load_prompts(wanted.prompts) if wanted.prompts else MetaPrompts()
    shown, tried_on = _divided(examples, wanted, seed, method)
    render = in_format(form)
    if method not in FROM_PAIRS:
        if method == "mutual_information" and not tried_on[0].options:
            raise ConfigError("instructions=mutual_information compares options, and this task's answers are open")
        _need_logprobs(engine, f"instructions={method}")
        seeds = wanted.seeds or [instruction]
        each = -(-wanted.candidates // (len(seeds) * len(prompts.paraphrase)))  # rounded up
        wordings = expand(writer, seeds, replace(PARAPHRASING, n=each, seed=seed), None, prompts, chat)
        choose = by_perplexity if method == "perplexity" else by_information
        return choose(engine, wordings, tried_on, render)
    by = wanted.by if wanted.by != "auto" else {"ape": "likelihood", "induction": "execution"}[method]
    judge: Judge
    if by == "likelihood":
        _need_logprobs(engine, f"instructions={method} with search.by=likelihood")
        judge = likelihood_judge(engine, render)
    else:
        judge = execution_judge(engine, metric("em"), render, wanted.answer_tokens)
    pairs, held_out = pairs_of(shown), pairs_of(tried_on)
    if method == "induction":
        asked = induction_prompts(pairs, wanted.candidates, wanted.shown, seed, prompts)
        return induce(writer, asked, held_out, prompts=prompts, chat=chat, judge=judge).ranked
    subsamples = min(5, wanted.candidates)
    how = ApeSettings(
        subsamples=subsamples, demonstrations=wanted.shown, proposals=-(-wanted.candidates // subsamples),
        search="ucb" if wanted.rounds else "all", rounds=max(1, wanted.rounds), iterations=wanted.iterations,
        chat=chat, seed=seed,
    )  # fmt: skip
    return ape(writer, pairs, held_out, how, prompts, judge)


def _divided(
    examples: Sequence[Example], settings: InstructionSearch, seed: int, method: str
) -> tuple[list[Example], list[Example]]:
    """(shown in proposals, tried on): random, apart where the method shows any; at most half are tried on then."""
    order = np.random.default_rng([seed, 23]).permutation(len(examples))
    mixed = [examples[i] for i in order]
    if method not in FROM_PAIRS:
        if not mixed:
            raise DataError(f"instructions={method} reads training examples, and there are none")
        return [], mixed[: settings.examples]
    least = settings.shown + 1
    if len(mixed) < least:
        raise DataError(
            f"instructions={method}: {len(mixed)} training examples; search.shown={settings.shown} and one to try "
            f"instructions on are {least}. Give more (train=, pool=), or a lower search.shown"
        )
    count = min(settings.examples, max(1, min(len(mixed) // 2, len(mixed) - settings.shown)))
    return mixed[count:], mixed[:count]


def _need_logprobs(engine: Any, what: str) -> None:
    """ConfigError, before anything is paid for, where a server gives no log-probs of its prompt."""
    if hasattr(engine, "tokenizer"):
        return
    error = engine.score([("Input: a", " b")])[0].error
    if error:
        raise ConfigError(
            f"{what} needs log-probs: {error}. instructions=induction, or ape with search.by=execution, do without"
        )


def table(ranked: Sequence[Ranked]) -> list[Mapping[str, Any]]:
    """Rows of the candidates, best first; an instruction that was never tried has no score (None)."""
    return [
        {
            "rank": rank, "instruction": r.instruction, "score": r.score if r.score == r.score else None,
            "evaluations": r.evaluations, "times": r.times,
        }
        for rank, r in enumerate(ranked, 1)
    ]  # fmt: skip
