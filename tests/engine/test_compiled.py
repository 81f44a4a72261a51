"""Compiled decoding gives the model's own tokens; weights taken for constants are noticed when they change."""

from __future__ import annotations

import logging
import shutil
from typing import Any

import pytest
import torch

from tests.engine.tiny_families import Numbers, build
from tutelage.engine import SamplingParams
from tutelage.engine.local import LocalEngine

pytestmark = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
PROMPTS = [[5, 6, 7], [5, 6, 8, 9], [11]]
GREEDY = SamplingParams(max_tokens=6, temperature=0.0)


def tokens(model: Any, **how: Any) -> list[tuple[int, ...]]:
    return [o.completions[0].tokens for o in LocalEngine(model, Numbers(), **how).generate(PROMPTS, GREEDY)]


def test_compiled_steps_give_the_models_tokens_and_changed_weights_are_noticed(caplog: Any) -> None:
    model = build("qwen3")  # one model and one test: compiling takes most of half a minute
    plain = tokens(model)
    assert tokens(model, compiled=True) == plain
    frozen = LocalEngine(model, Numbers(), compiled="frozen")
    assert [o.completions[0].tokens for o in frozen.generate(PROMPTS, GREEDY)] == plain
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.roll(weight, 1, 0))
    assert "weights have changed" not in caplog.text
    with caplog.at_level(logging.WARNING, "tutelage"):
        after = [o.completions[0].tokens for o in frozen.generate(PROMPTS, GREEDY)]
    assert after == tokens(model) != plain
    assert "weights have changed" in caplog.text
