"""Rewards behind one signature: reward(prompts, completions, **columns) -> list[float] (TRL's)."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import PlainSerializer

from tutelage.core.errors import RewardError

Reward = Callable[..., list[float]]
One = str | Callable[..., Any]
Several = One | list[One | list[One]]


def spec_of(reward: Any) -> Any:
    """A reward as text for configuration and fingerprint; a live function by its name and a hash of its source; a list
    of rewards as a list."""
    if isinstance(reward, str) or reward is None:
        return reward
    if isinstance(reward, list | tuple):
        return [spec_of(one) for one in reward]
    try:
        source = inspect.getsource(reward)
    except (OSError, TypeError):
        source = repr(reward)
    name = f"{getattr(reward, '__module__', '')}.{getattr(reward, '__qualname__', type(reward).__name__)}"
    return f"{name}#{hashlib.sha256(source.encode()).hexdigest()[:12]}"


RewardSpec = Annotated[One, PlainSerializer(spec_of, return_type=str)]
"""A run directory or file.py:function as text, or a live function."""
RewardSpecs = Annotated[Several, PlainSerializer(spec_of)]
"""One of these, or several: a list, in which a list of reward models is an ensemble."""


def each_reward(reward: Several | None) -> Iterator[One]:
    """Every single reward of a specification, in order."""
    if isinstance(reward, list | tuple):
        for one in reward:
            yield from each_reward(one)  # type: ignore[arg-type]
    elif reward is not None:
        yield reward


def is_model(reward: One) -> bool:
    """Whether it names a reward model rather than a function or "logprob"."""
    return isinstance(reward, str) and reward != "logprob" and ":" not in reward


def name_of(reward: One) -> str:
    """A short name for logs: the function's, or the run directory's."""
    if callable(reward):
        return str(getattr(reward, "__name__", type(reward).__name__))
    return reward.rpartition(":")[2] if ":" in reward else Path(reward).name


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
        try:
            module_spec.loader.exec_module(module)
        except Exception as error:  # of the user's file, which may hold anything
            line = getattr(error, "lineno", None) or _line_in(error, where)
            raise RewardError(f"{where}:{line}: cannot be loaded ({type(error).__name__}: {error})") from error
    else:
        try:
            module = importlib.import_module(where)
        except ImportError as error:
            raise RewardError(f"{where}: cannot be imported ({error})") from None
    if not callable(getattr(module, name, None)):
        functions = [n for n, value in vars(module).items() if inspect.isfunction(value) and not n.startswith("_")]
        raise RewardError(f"{where}: has no function {name!r}; it has: {', '.join(functions) or 'none'}")
    return getattr(module, name)


def as_function(reward: str | Reward) -> Reward:
    """A live function as it is, a named one loaded."""
    return reward if callable(reward) else load_function(reward)


def judge_rows(function: Reward, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[float]:
    """`call_reward` on one answer to each row's prompt; the rows' other columns reach the function."""
    columns = {k: [row.get(k) for row in rows] for k in rows[0] if k not in ("prompt", "ids")}
    return call_reward(function, [row["prompt"] for row in rows], texts, columns)


def _line_in(error: BaseException, file: str) -> int:
    """The last line of `file` that an error came through, 0 if it did not."""
    frames = traceback.extract_tb(error.__traceback__)
    return next((f.lineno or 0 for f in reversed(frames) if Path(f.filename) == Path(file).absolute()), 0)


def call_reward(
    function: Reward, prompts: Sequence[Any], completions: Sequence[str], columns: dict[str, list[Any]]
) -> list[float]:
    """Call and check: RewardError, naming the row that did it, if the function raises, returns the wrong number of
    scores, or a score that is not finite."""
    code = getattr(function, "__code__", None)
    name = f"reward function {getattr(function, '__name__', function)!r}"
    if code is not None:
        name += f" ({code.co_filename}:{code.co_firstlineno})"
    try:
        found = function(list(prompts), list(completions), **columns)
        scores = found if isinstance(found, str | bytes) else list(found)
    except Exception as error:
        line = _line_in(error, code.co_filename) if code is not None else 0
        at = f" in line {line}" if line else ""
        row = _culprit(function, prompts, completions, columns, lambda scores: True)
        takes = "; it must take (prompts, completions, **columns)" if isinstance(error, TypeError) else ""
        raise RewardError(f"{name} raised {type(error).__name__}: {error}{at} ({row}){takes}") from error
    if isinstance(scores, str | bytes) or len(scores) != len(completions):
        what = f"the text {str(found)[:40]!r}" if isinstance(scores, str | bytes) else f"{len(scores)} scores"
        row = _culprit(function, prompts, completions, columns, lambda scores: len(scores) == 1)
        words = f"{name} returned {what} for {len(completions)} completions; expected a number for each"
        raise RewardError(f"{words} ({row})")
    return [_number(score, name, *row) for score, row in zip(scores, zip(prompts, completions))]


def _culprit(
    function: Reward,
    prompts: Sequence[Any],
    completions: Sequence[str],
    columns: dict[str, list[Any]],
    fine: Callable[[list[Any]], bool],
) -> str:
    """The first row that fails when the function is given it alone, in words; where none does, the first of all."""
    for i, (prompt, completion) in enumerate(zip(prompts, completions)):
        try:
            found = function([prompt], [completion], **{key: values[i : i + 1] for key, values in columns.items()})
            right = not isinstance(found, str | bytes) and fine(list(found))
        except Exception:
            right = False
        if not right:
            return f"row {i + 1} of {len(completions)}: {_row(prompt, completion)}"
    return f"no row of {len(completions)} alone does it; the first: {_row(prompts[0], completions[0])}"


def _row(prompt: Any, completion: str) -> str:
    return f"prompt {str(prompt)[:80]!r}, completion {completion[:80]!r}"


def _number(score: Any, name: str, prompt: Any, completion: str) -> float:
    """A score as a float: Python's, numpy's or a tensor's. RewardError for anything else, NaN included."""
    try:
        value = math.nan if isinstance(score, str | bytes) else float(score)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise RewardError(
            f"{name} returned {score!r} for completion {completion[:80]!r}; expected a finite number "
            f"(prompt {str(prompt)[:80]!r})"
        )
    return value
