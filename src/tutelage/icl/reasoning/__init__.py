"""Reasoning: chains of thought and what was built on them; every method of METHODS is called alike.

    from tutelage.icl.reasoning import ReasonSettings, read_problems, reason
    result = reason("self_consistency", engine, read_problems("gsm8k/train.jsonl", 20), ReasonSettings(paths=10))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tutelage.core.errors import ConfigError
from tutelage.icl.reasoning.asking import Engine
from tutelage.icl.reasoning.auto_cot import auto_cot
from tutelage.icl.reasoning.chains import (
    few_shot,
    few_shot_cot,
    self_consistency,
    zero_plus_few_shot_cot,
    zero_shot,
    zero_shot_cot,
)
from tutelage.icl.reasoning.least_to_most import least_to_most
from tutelage.icl.reasoning.problems import Problem, read_problems
from tutelage.icl.reasoning.prompts import TRIGGERS
from tutelage.icl.reasoning.self_ask import self_ask
from tutelage.icl.reasoning.settings import Path, ProblemResult, ReasonResult, ReasonSettings

Method = Callable[[Engine, Sequence[Problem], ReasonSettings, int], ReasonResult]

METHODS: dict[str, Method] = {
    "zero_shot": zero_shot,
    "few_shot": few_shot,
    "zero_shot_cot": zero_shot_cot,
    "few_shot_cot": few_shot_cot,
    "zero_plus_few_shot_cot": zero_plus_few_shot_cot,
    "self_consistency": self_consistency,
    "auto_cot": auto_cot,
    "self_ask": self_ask,
    "least_to_most": least_to_most,
}
"""Every method: ``method(engine, problems, settings, seed)``."""

__all__ = [
    "METHODS", "TRIGGERS", "Path", "Problem", "ProblemResult", "ReasonResult", "ReasonSettings", "read_problems",
    "reason",
]  # fmt: skip


def reason(
    method: str, engine: Engine, problems: Sequence[Problem], settings: ReasonSettings | None = None, seed: int = 0
) -> ReasonResult:
    """The result of a method by its name. ConfigError for a name that METHODS does not have."""
    if method not in METHODS:
        raise ConfigError(f"method={method!r}; expected one of {', '.join(METHODS)}")
    return METHODS[method](engine, problems, settings or ReasonSettings(), seed)
