"""K answers to each prompt, to be ranked: by a judge (stages/rank.py) or by people (feedback/active.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tutelage.core.errors import DataError
from tutelage.core.runtime import stream_seed
from tutelage.engine import LocalEngine, RemoteEngine, SamplingParams
from tutelage.text.chat import as_messages
from tutelage.train.sources import place_of


def turns_of(temperature: float | Sequence[float], responses: int) -> dict[float, int]:
    """Each temperature with how many of a prompt's `responses` answers are sampled at it."""
    given = [temperature] if isinstance(temperature, int | float) else list(temperature)
    return Counter(given[i % len(given)] for i in range(responses))


def sample_answers(
    engine: LocalEngine | RemoteEngine,
    rows: Sequence[Mapping[str, Any]],
    turns: Mapping[float, int],
    max_tokens: int,
    seed: int,
    stream: Sequence[Any],
    data: str,
) -> list[list[str]]:
    """The answers to each row's prompt, `turns` of them (see `turns_of`), equal ones too.

    Random numbers are those of the stream (seed, *stream). DataError names the row of `data` whose prompt failed.
    """
    found: list[list[str]] = [[] for _ in rows]
    for number, (temperature, n) in enumerate(turns.items()):
        drawn = stream_seed(seed, *stream, *[number] * bool(number)) % 2**31
        params = SamplingParams(max_tokens=max_tokens, temperature=temperature, n=n, seed=drawn)
        outputs = engine.generate([as_messages({"prompt": row["prompt"]}) for row in rows], params)
        for row, texts, output in zip(rows, found, outputs):
            if output.error:
                raise DataError(f"{place_of(row['prompt'], data)}: {output.error}")
            texts += [completion.text for completion in output.completions]
    return found
