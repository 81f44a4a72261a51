"""Compiled layers give the log-probs and gradients that they give as they are; reference and policy stay equal to the
bit."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.test_ppo import SMALL, sft
from tests.train.test_shared import FAMILIES, rollout
from tutelage.core.errors import ConfigError
from tutelage.pipeline.stages import launch
from tutelage.train import shared
from tutelage.train.compiled import layers_of
from tutelage.train.shared import Logits, compile_all, pack_rows, packed_logprobs

__all__ = ["sft"]
compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")


def test_the_repeated_layers_are_found() -> None:
    assert {type(x).__name__ for x in layers_of(FAMILIES["llama"]())} == {"LlamaDecoderLayer"}
    assert {type(x).__name__ for x in layers_of(FAMILIES["gpt2"]())} == {"GPT2Block"}
    assert layers_of(torch.nn.Linear(2, 2)) == []


def test_without_a_compiler_the_layers_run_as_they_are(monkeypatch: Any, caplog: Any) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr("tutelage.train.compiled.program", lambda kind: broken)
    forward = Logits(FAMILIES["llama"]().eval())
    with caplog.at_level(logging.WARNING, "tutelage"):
        assert not compile_all([forward], False, "fp32")
    assert "without torch.compile: RuntimeError: no compiler here" in caplog.text
    assert forward(torch.ones(1, 3, dtype=torch.long), torch.ones(1, 3)).shape == (1, 3, 40)


def test_adapters_are_not_compiled(sft: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="method=full"):
        launch("ppo", {**SMALL, "model": sft, "reward": "logprob", "method": "lora", "compiled": True, "out": "x"})


@compiler
@pytest.mark.slow
def test_compiled_log_probs_gradients_and_first_update(sft: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = FAMILIES["llama"]().eval()
    model, reference = copy.deepcopy(plain), copy.deepcopy(plain)
    forwards = [Logits(model), Logits(reference)]
    assert compile_all(forwards, True, "fp32") and all(p.grad is None for p in model.parameters())
    x = rollout()
    pack = pack_rows(x.tokens, x.mask, [0, 0, 0, 1, 1, 1])
    assert pack is not None
    found = []
    for forward in (Logits(plain), forwards[0]):
        logp, _ = packed_logprobs(forward, pack, 1.0)
        found.append((logp, torch.autograd.grad(logp.square().sum(), list(forward.model.parameters()))))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    for a, b in zip(found[0][1], found[1][1]):
        assert torch.allclose(a, b, atol=1e-4)
    with torch.no_grad():
        theirs, _ = shared.packed_logprobs(forwards[1], pack, 1.0)
    assert torch.equal(theirs, found[1][0].detach()) and not theirs.requires_grad
    for name, more in {"grpo": {"group_size": 4}, "ppo": {}}.items():
        values = {**SMALL, **more, "model": sft, "reward": "logprob", "compiled": True, "out": str(tmp_path / name)}
        path, _ = launch(name, values)
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        assert rows[0]["first_ratio_deviation"] == 0.0 and rows[0]["kl"] == 0.0 and rows[0]["sampler_gap"] < 1e-3
        assert rows[-1]["kl"] != 0.0 and not any(row["skipped_steps"] for row in rows)
