"""A model folder that is not whole: the error names the folder and what is wrong with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.engine.test_local_engine import make_model, make_tokenizer
from tutelage.core.errors import DataError
from tutelage.engine import SamplingParams, load
from tutelage.model.hub import save_model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: Any) -> Path:
    model: Any = make_model("llama")
    folder = save_model(model, make_tokenizer(), tmp_path_factory.mktemp("folder") / "m")
    loaded = load(folder, device="cpu")
    assert loaded.generate("the cat", SamplingParams(max_tokens=2))[0].error is None
    return folder


def without_one_weight(folder: Path) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.0.self_attn.q_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})


def with_shards_that_are_not_there(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def of_another_size(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "hidden_size": 64}))


def without_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()


CASES: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: (folder / "model.safetensors").unlink(), "could not load .*broken'.*no file named model.safe"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b""), "broken/model.safetensors: damaged or cut short"),
    (without_one_weight, "broken': its weights lack model.layers.0.self_attn.q_proj.weight; write or copy the model"),
    (with_shards_that_are_not_there, "broken'.*model-00001-of-00002.safetensors"),
    (of_another_size, "could not load a causal language model from .*broken'"),
    (without_tokenizer, "tokenizer '.*broken': cannot be read .*expected a folder with a tokenizer.json"),
    (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer '.*broken': cannot be read .*line 1"),
    (lambda folder: (folder / "config.json").write_text("{"), "broken/config.json' is not a valid JSON"),
    (lambda folder: (folder / "config.json").write_text('{"model_type": "none"}'), "model type `none`"),
    (lambda folder: (folder / "config.json").unlink(), "no model in '.*broken': neither it nor its model/ holds"),
]


@pytest.mark.parametrize(("change", "says"), CASES)
def test_what_is_wrong_with_a_folder_is_named(whole: Path, tmp_path: Path, change: Any, says: str) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(whole, folder)
    change(folder)
    with pytest.raises(DataError, match=says):
        load(folder, device="cpu")
