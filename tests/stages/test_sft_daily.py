"""What SFT offers day by day: the best model kept, activations recomputed, blocks of best fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tutelage.core.config import build
from tutelage.core.errors import ConfigError
from tutelage.core.records import BadRows
from tutelage.model.hub import load_model
from tutelage.pipeline.stages import launch, read_summary
from tutelage.stages.sft import ADAPTER_RATES, SftConfig, answer_loss, divided, encode_rows
from tutelage.text.chat import turn_end_id
from tutelage.text.loader import collate_flat, pack_rows

SMALL = {"rows": 60, "held_rows": 20, "steps": 3, "batch_size": 8, "eval_every": 0, "precision": "fp32",
         "optimizer": {"name": "adamw", "lr": 1e-3}}  # fmt: skip


def test_adapters_have_a_rate_of_their_own_and_one_key_changes_that_alone() -> None:
    made = build(SftConfig, {"model": "m", "method": "lora"}).optimizer
    assert (made.name, made.lr) == ("adamw", ADAPTER_RATES["lora"])
    given = {"model": "m", "method": "prompt", "optimizer": {"warmup": 0.3}}
    changed = build(SftConfig, given).optimizer
    assert (changed.name, changed.lr, changed.warmup) == ("adamw", ADAPTER_RATES["prompt"], 0.3)
    assert build(SftConfig, {"model": "m"}).optimizer.name == "muon"


def test_the_best_model_is_kept_and_training_ends(chain: Path, tmp_path: Path) -> None:
    """At a rate that overshoots, the validation loss soon rises."""
    values = {**SMALL, "model": str(chain / "sft"), "steps": 12, "held_rows": 8, "eval_every": 1, "patience": 2,
              "optimizer": {"name": "adamw", "lr": 0.03, "warmup": 0.3, "decay": 0}}  # fmt: skip
    out, _ = launch("sft", {**values, "out": str(tmp_path / "early")})
    found = read_summary(out)
    assert found["stopped_early"] and 0 < found["kept_step"] < 10 and not (out / "best").exists()
    config = SftConfig(**values)
    model, tokenizer = load_model(out)
    held = encode_rows(divided(config, BadRows())[1], tokenizer, 256)
    measured = answer_loss(model, held, tokenizer.pad_token_id, turn_end_id(tokenizer))
    assert measured["val_loss"] == pytest.approx(found["val_loss"], rel=1e-4)


@pytest.mark.parametrize("packing", [False, True])
def test_recomputed_activations_change_memory_and_not_the_model(chain: Path, tmp_path: Path, packing: bool) -> None:
    values = {**SMALL, "model": str(chain / "pretrain"), "packing": packing}
    found = []
    for checkpointing in (False, True):
        out, _ = launch("sft", {**values, "checkpointing": checkpointing, "out": str(tmp_path / str(checkpointing))})
        found.append(read_summary(out))
    assert found[1]["val_loss"] == pytest.approx(found[0]["val_loss"], rel=1e-5)


def test_blocks_hold_every_row_once_and_train(chain: Path, tmp_path: Path) -> None:
    rows = [{"input_ids": [n] * n, "labels": [n] * n} for n in (3, 9, 4, 6, 8, 2)]
    blocks = pack_rows(rows, 12)
    batch = collate_flat(blocks)
    assert sorted(batch["lengths"].tolist()) == [2, 3, 4, 6, 8, 9] and int(batch["lengths"].sum()) == 32
    assert (batch["labels"] == -100).sum() == 6
    assert batch["input_ids"].unique().tolist() == [2, 3, 4, 6, 8, 9]
    values = {**SMALL, "model": str(chain / "pretrain"), "packing": True, "block_size": 128, "batch_size": 2}
    out, _ = launch("sft", {**values, "out": str(tmp_path / "blocks")})
    assert read_summary(out)["val_loss"] < read_summary(out)["val_loss_before"]
    with pytest.raises(ConfigError, match="block_size=8: a row has .* tokens; raise it"):
        launch("sft", {**values, "block_size": 8, "out": str(tmp_path / "small")})


@pytest.mark.parametrize(
    ("keys", "words"),
    [({"block_size": 64}, "block_size needs packing=true"), ({"patience": 2}, "patience needs eval_every")],
)
def test_keys_that_need_another_say_so(chain: Path, tmp_path: Path, keys: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        launch("sft", {**SMALL, "model": str(chain / "pretrain"), **keys, "out": str(tmp_path / "x")})
