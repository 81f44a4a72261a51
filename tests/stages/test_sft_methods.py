"""SFT by every method: peft itself loads what is saved, the engine runs it, and what cannot be done is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM

from tutelage.core.errors import ConfigError, DataError
from tutelage.engine import LocalEngine, SamplingParams, load
from tutelage.model.hub import load_model
from tutelage.model.tuning import METHODS
from tutelage.pipeline.stages import launch, read_summary
from tutelage.train.sources import prompts

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:fan_in_fan_out")
SMALL = {"rows": 40, "held_rows": 10, "steps": 2, "batch_size": 8, "eval_every": 0, "precision": "fp32"}
IDS = torch.tensor([[5, 9, 17, 33, 8, 21]])


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits[:, -IDS.shape[1] :]


@pytest.mark.parametrize("method", [m for m in METHODS if m != "full"])
def test_peft_and_the_engine_load_what_is_saved(chain: Path, tmp_path: Path, method: str) -> None:
    values = {**SMALL, "model": str(chain / "pretrain"), "method": method, "prompt": {"tokens": 5}}
    out, _ = launch("sft", {**values, "out": str(tmp_path / method)})
    found = read_summary(out)
    assert 0 < found["trained_parameters"] < found["parameters"] / 4
    config = json.loads((out / "model/adapter_config.json").read_text())
    assert Path(config["base_model_name_or_path"]) == (chain / "pretrain/model").resolve()
    base = AutoModelForCausalLM.from_pretrained(chain / "pretrain/model")
    before = logits(base)
    theirs = logits(PeftModel.from_pretrained(base, str(out / "model")))
    assert (theirs - before).abs().max() > 1e-3
    ours, _ = load_model(out, learned_prompt=True)
    torch.testing.assert_close(logits(ours), theirs, rtol=1e-4, atol=1e-4)
    engine = load(out)
    assert isinstance(engine, LocalEngine)
    asked = [[{"role": "user", "content": row["prompt"]}] for row in prompts("schoolroom:demo", "heldout", 2, 0)]
    outputs = engine.generate(asked, SamplingParams(max_tokens=4, temperature=0))
    assert all(o.error is None for o in outputs)


def test_merged_on_request_and_trained_further(chain: Path, tmp_path: Path) -> None:
    values = {**SMALL, "model": str(chain / "pretrain"), "method": "lora", "lora": {"r": 2, "alpha": 8}}
    apart, _ = launch("sft", {**values, "out": str(tmp_path / "apart")})
    whole, _ = launch("sft", {**values, "merge": True, "out": str(tmp_path / "whole")})
    assert not (whole / "model/adapter_config.json").exists()
    merged = logits(AutoModelForCausalLM.from_pretrained(whole / "model"))
    torch.testing.assert_close(merged, logits(load_model(apart)[0]), rtol=1e-5, atol=1e-5)
    assert json.loads((apart / "model/adapter_config.json").read_text())["r"] == 2
    with pytest.raises(ConfigError, match="itself an adapter.*add merge=true"):
        launch("sft", {**values, "model": str(apart), "out": str(tmp_path / "twice")})
    on, _ = launch("sft", {**values, "model": str(apart), "merge": True, "out": str(tmp_path / "on")})
    assert (on / "model/config.json").is_file()


def test_new_chat_tokens_are_saved_with_the_adapter(foreign: Path, tmp_path: Path) -> None:
    """The base knows no chat tokens: their rows are trained, and peft finds them again."""
    values = {**SMALL, "model": str(foreign), "max_length": 96, "method": "lora", "out": str(tmp_path / "lora")}
    out, _ = launch("sft", values)
    theirs: Any = AutoPeftModelForCausalLM.from_pretrained(str(out / "model"))
    torch.testing.assert_close(logits(load_model(out)[0]), logits(theirs), rtol=1e-4, atol=1e-4)


def test_a_learned_prompt_is_neither_merged_nor_trained_further(chain: Path, tmp_path: Path) -> None:
    values = {**SMALL, "model": str(chain / "pretrain"), "method": "prompt", "prompt": {"tokens": 3, "text": "sam"}}
    with pytest.raises(ConfigError, match="merge=true cannot be used with method=prompt.*or choose method=lora"):
        launch("sft", {**values, "merge": True, "out": str(tmp_path / "merged")})
    out, _ = launch("sft", {**values, "out": str(tmp_path / "prompt")})
    with pytest.raises(DataError, match="learned prompt .PROMPT_TUNING., which cannot be merged"):
        launch("reward", {"model": str(out), "data": str(chain / "rank"), "out": str(tmp_path / "reward")})
    with pytest.raises(ConfigError, match="packing=true cannot be used.*learned prompt"):
        launch("sft", {**values, "packing": True, "out": str(tmp_path / "packed")})
    with pytest.raises(ConfigError, match="method=full: there is no adapter"):
        launch("sft", {**values, "method": "full", "merge": True, "out": str(tmp_path / "full")})


def test_an_adapter_whose_base_has_gone_is_named(chain: Path, tmp_path: Path) -> None:
    values = {**SMALL, "model": str(chain / "pretrain"), "method": "ia3", "out": str(tmp_path / "ia3")}
    out, _ = launch("sft", values)
    file = out / "model/adapter_config.json"
    config = json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "gone")}
    file.write_text(json.dumps(config))
    with pytest.raises(DataError, match="adapter_config.json: no model in base_model_name_or_path=.*gone.*set it anew"):
        load(out)
