"""Rewards behind one signature: reward(prompts, completions, **columns) -> list[float] (TRL's)."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import PlainSerializer

from tutelage.core.errors import RewardError

Reward = Callable[..., list[float]]


def spec_of(reward: str | Reward) -> str:
    """A reward as text for configuration and fingerprint; a live function by its name and a hash of its source."""
    if isinstance(reward, str):
        return reward
    try:
        source = inspect.getsource(reward)
    except (OSError, TypeError):
        source = repr(reward)
    name = f"{getattr(reward, '__module__', '')}.{getattr(reward, '__qualname__', type(reward).__name__)}"
    return f"{name}#{hashlib.sha256(source.encode()).hexdigest()[:12]}"


RewardSpec = Annotated[str | Callable[..., Any], PlainSerializer(spec_of, return_type=str)]
"""A run directory or file.py:function as text, or a live function."""


def load_function(spec: str) -> Callable[..., Any]:
    """`path/to/file.py:function`, or `package.module:function`. Raises RewardError naming what is missing."""
    where, _, name = spec.rpartition(":")
    if not where:
        raise RewardError(f"{spec!r}: expected file.py:function or module:function")
    if where.endswith(".py"):
        path = Path(where)
        if not path.exists():
            raise RewardError(f"{where}: no such file")
        module_spec = importlib.util.spec_from_file_location(path.stem, path)
        assert module_spec and module_spec.loader
        module = importlib.util.module_from_spec(module_spec)
        module_spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(where)
        except ImportError as error:
            raise RewardError(f"{where}: cannot be imported ({error})") from None
    if not callable(getattr(module, name, None)):
        raise RewardError(f"{where}: has no function {name!r}")
    return getattr(module, name)


def as_function(reward: str | Reward) -> Reward:
    """A live function as it is, a named one loaded."""
    return reward if callable(reward) else load_function(reward)


def judge_rows(function: Reward, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[float]:
    """`call_reward` on one answer to each row's prompt; the rows' other columns reach the function."""
    columns = {k: [row.get(k) for row in rows] for k in rows[0] if k not in ("prompt", "ids")}
    return call_reward(function, [row["prompt"] for row in rows], texts, columns)


def call_reward(
    function: Reward, prompts: Sequence[Any], completions: Sequence[str], columns: dict[str, list[Any]]
) -> list[float]:
    """Call and check: RewardError if it raises, returns the wrong number of scores, or a score is not finite."""
    try:
        scores = list(function(list(prompts), list(completions), **columns))
    except Exception as error:
        raise RewardError(
            f"reward function {getattr(function, '__name__', function)!r} raised "
            f"{type(error).__name__}: {error} (first prompt: {str(prompts[0])[:80]!r})"
        ) from error
    if len(scores) != len(completions):
        raise RewardError(f"reward function returned {len(scores)} scores for {len(completions)} completions")
    for i, score in enumerate(scores):
        if not isinstance(score, int | float) or not math.isfinite(score):
            raise RewardError(
                f"reward function returned {score!r} for completion {completions[i]!r}; expected a number"
            )
    return [float(s) for s in scores]
