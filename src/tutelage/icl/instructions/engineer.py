"""The automatic prompt engineer (Zhou et al. 2022, arXiv 2211.01910): propose, try, keep the best, reword them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tutelage.core.errors import ConfigError, DataError
from tutelage.icl.instructions.bandit import upper_confidence
from tutelage.icl.instructions.judges import Judge, execution_judge, judge_all, likelihood_judge
from tutelage.icl.instructions.metrics import metric
from tutelage.icl.instructions.prompts import MetaPrompts
from tutelage.icl.instructions.proposals import MODES, SAMPLING, propose, resample, subsets, without
from tutelage.icl.instructions.ranked import Pair, Ranked, best_first


@dataclass(frozen=True)
class ApeSettings:
    """The paper's numbers: 5 x 50 = 250 proposals of 5 demonstrations each, tried by a bandit."""

    mode: str = "forward"
    """"forward", or "reverse" and "insert" with an encoder-decoder that fills gaps."""
    subsamples: int = 5
    demonstrations: int = 5
    proposals: int = 50
    """Samples of each subsample's prompt."""
    temperature: float = SAMPLING.temperature
    top_p: float = SAMPLING.top_p
    max_tokens: int = SAMPLING.max_tokens
    by: Literal["likelihood", "execution"] = "likelihood"
    """What makes an instruction good: log P(right answer), or ``metric`` of the greedy answer."""
    metric: str = "em"
    answer_tokens: int = 30
    search: Literal["ucb", "all"] = "ucb"
    """A bandit over the pairs, or every pair for every instruction."""
    rounds: int = 20
    share: float = 1 / 3
    samples: int = 5
    c: float = 1.0
    confirm: int = 5
    """How many of a bandit's best are tried on every pair at the end, and come first: the best of many means over a
    few pairs is partly luck. 0: as in the paper's code."""
    iterations: int = 0
    """Of Monte-Carlo search: reword the best ``keep``, ``variations`` times each, and try what is new."""
    keep: int = 5
    variations: int = 10
    chat: bool = False
    """Ask for instructions in a user's turn, through the chat template."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("mode", MODES), ("by", ("likelihood", "execution")), ("search", ("ucb", "all"))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(allowed)}")
        for name in ("subsamples", "demonstrations", "proposals", "rounds", "samples", "keep", "variations"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("iterations", "confirm"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")


def ape(
    engine: Any,
    shown: Sequence[Pair],
    tried_on: Sequence[Pair],
    settings: ApeSettings | None = None,
    prompts: MetaPrompts | None = None,
    judge: Judge | None = None,
) -> list[Ranked]:
    """Instructions for the task of the ``shown`` pairs, tried on others, best first.

    Engine calls: one generate for the proposals and one for each iteration's variations; to try them one call a bandit
    round and one to confirm, or one in all with search="all". judge: another measure than settings.by.
    """
    wanted = settings or ApeSettings()
    templates = prompts or MetaPrompts()
    if judge is None and wanted.by == "likelihood":
        judge = likelihood_judge(engine, templates.context)
    elif judge is None:
        judge = execution_judge(engine, metric(wanted.metric), templates.context, wanted.answer_tokens, wanted.chat)
    if not tried_on:
        raise DataError("no pairs to try instructions on")
    sampling = replace(
        SAMPLING, n=wanted.proposals, temperature=wanted.temperature, top_p=wanted.top_p,
        max_tokens=wanted.max_tokens, seed=wanted.seed,
    )  # fmt: skip
    sets = subsets(shown, wanted.subsamples, wanted.demonstrations, wanted.seed)
    found = propose(engine, sets, sampling, wanted.mode, templates, wanted.chat)
    ranked = evaluate(judge, found, tried_on, wanted)
    for iteration in range(1, wanted.iterations + 1):
        # an instruction that stays among the best is asked for other variations than before
        varied = replace(sampling, n=wanted.variations, seed=wanted.seed + iteration)
        best = [r.instruction for r in ranked[: wanted.keep]]
        new = without(resample(engine, best, varied, templates, wanted.chat), (r.instruction for r in ranked))
        if new:
            later = replace(wanted, seed=wanted.seed + iteration)
            ranked = best_first([*ranked, *evaluate(judge, new, tried_on, later)])
    sure = {r.instruction: r.times for r in ranked[: wanted.confirm]} if wanted.search == "ucb" else {}
    return [*judge_all(judge, sure, tried_on), *ranked[len(sure) :]] if sure else ranked


def evaluate(judge: Judge, found: Mapping[str, int], pairs: Sequence[Pair], settings: ApeSettings) -> list[Ranked]:
    """The instructions ``found`` (with how often each was proposed), best first, by a bandit or on every pair."""
    if settings.search == "all":
        return judge_all(judge, found, pairs)
    names = list(found)
    pulled = upper_confidence(
        lambda asked: judge([(names[arm], pairs[example]) for arm, example in asked]),
        len(names), len(pairs), settings.rounds, settings.share, settings.samples, settings.c, settings.seed,
    )  # fmt: skip
    tried = zip(names, pulled.means, pulled.counts, strict=True)
    return best_first(Ranked(name, float(mean), int(count), found[name]) for name, mean, count in tried)
