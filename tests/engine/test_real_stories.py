"""The real stories260K checkpoint: its published greedy text, scores, and streaming."""

from __future__ import annotations

from pathlib import Path

import pytest

from tutelage.engine import LocalEngine, SamplingParams, load

pytestmark = pytest.mark.real
PUBLISHED = (
    ", there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball. "
    "She wanted to play with it, but it was too high."
)


def test_greedy_text_is_the_published_one(real_data: Path) -> None:
    engine = load(real_data / "weights" / "stories260K" / "hf")
    assert isinstance(engine, LocalEngine)
    params = SamplingParams(max_tokens=90, temperature=0)
    whole = engine.generate(["Once upon a time", "Tom"], params)[0].text
    assert whole.startswith(PUBLISHED)
    assert "".join(piece.text for piece in engine.stream("Once upon a time", params)) == whole
    likely, unlikely = engine.score([("Once upon a time", ", there was"), ("Once upon a time", " purple was")])
    assert likely.is_greedy and likely.logprob > unlikely.logprob + 3
