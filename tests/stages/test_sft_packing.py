"""SFT with packing: the same training as with padding, and a model that cannot follow a plan is refused."""

from __future__ import annotations

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM

from tutelage.core.errors import ConfigError
from tutelage.model.hub import load_tokenizer, save_model
from tutelage.pipeline.stages import launch, read_summary


def test_packing_changes_how_and_not_what(chain, tmp_path):
    values = {"model": str(chain / "pretrain"), "rows": 60, "held_rows": 20, "steps": 6, "batch_size": 8,
              "eval_every": 0, "precision": "fp32", "optimizer": {"name": "adamw", "lr": 1e-3}}  # fmt: skip
    found = []
    for packing in (False, True):
        path, _ = launch("sft", {**values, "packing": packing, "out": str(tmp_path / str(packing))})
        found.append(read_summary(path))
    assert found[1]["val_loss"] == pytest.approx(found[0]["val_loss"], rel=1e-3)
    assert found[1]["loss"] == pytest.approx(found[0]["loss"], rel=1e-3)


def test_a_model_without_plans_is_refused_with_the_reason(chain, tmp_path):
    tokenizer = load_tokenizer(chain / "pretrain")
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=1, n_head=2)
    save_model(BloomForCausalLM(config), tokenizer, tmp_path / "bloom")
    with pytest.raises(ConfigError, match="packing=true cannot be used with .*bloom: .*leave it out"):
        launch("sft", {"model": str(tmp_path / "bloom"), "rows": 20, "packing": True, "out": str(tmp_path / "out")})
