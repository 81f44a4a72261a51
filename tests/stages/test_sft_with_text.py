"""Pretraining text in SFT: the gradient is the weighted sum, the loader resumes, and the language is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tutelage.loss.lm import cross_entropy_sum
from tutelage.model.hub import load_model
from tutelage.pipeline.stages import launch, read_summary
from tutelage.text.loader import BlockLoader, Mixed, RowLoader
from tutelage.text.shards import TokenShards
from tutelage.train.objectives import WithText


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tokenizer, _ = launch("tokenizer", {"documents": 300, "vocab_size": 400, "out": str(folder / "tokenizer")})
    common = {"tokenizer": str(tokenizer)}
    launch("prepare", {**common, "documents": 600, "validation": 60, "out": str(folder / "prepare")})
    pretrain = {
        **common, "data": str(folder / "prepare"), "model": "preset:laptop-0.3m", "steps": 60, "batch_size": 8,
        "block_size": 64, "eval_every": 0, "save_every": 0, "precision": "fp32", "out": str(folder / "pretrain"),
    }  # fmt: skip
    launch("pretrain", pretrain)
    return folder


def mixed(base: Path, tokenizer) -> Mixed:
    rows = [{"input_ids": list(range(5, 5 + n)), "labels": [-100, *range(6, 5 + n)]} for n in (4, 7, 9, 5)]
    text = TokenShards(base / "prepare/train", tokenizer)
    return Mixed(RowLoader(rows, batch_size=3, seed=1), BlockLoader(text, 2, 32, 1))


def test_gradient_is_the_weighted_sum_whatever_the_counts(base: Path) -> None:
    model, tokenizer = load_model(base / "pretrain")
    model.double()
    batch = next(mixed(base, tokenizer))
    total, metrics = WithText(0.3)(model, batch)
    (total / metrics["count"]).backward()
    got = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for part, weight in ((batch, 1.0), (batch["ptx"], 0.3)):
        loss, count = cross_entropy_sum(
            model(input_ids=part["input_ids"], attention_mask=part.get("attention_mask")).logits, part["labels"]
        )
        (weight * loss / count).backward()
    assert all(torch.allclose(g, p.grad, atol=1e-9) for g, p in zip(got, model.parameters()))


def test_the_mixed_loader_resumes(base: Path) -> None:
    _, tokenizer = load_model(base / "pretrain")
    first, second = mixed(base, tokenizer), mixed(base, tokenizer)
    next(first)
    second.load_state_dict(first.state_dict())
    a, b = next(first), next(second)
    assert torch.equal(a["input_ids"], b["input_ids"]) and torch.equal(a["ptx"]["input_ids"], b["ptx"]["input_ids"])


def test_text_beside_the_dialogues_keeps_the_language(base: Path, tmp_path: Path) -> None:
    common = {
        "model": str(base / "pretrain"), "ptx_data": str(base / "prepare"), "rows": 300, "steps": 40, "batch_size": 16,
        "ptx_block": 64, "ptx_batch": 8, "eval_every": 0, "save_every": 0, "precision": "fp32",
        "optimizer": {"name": "muon", "lr": 4e-3, "muon_lr": 0.01},
    }  # fmt: skip
    found = {}
    for coef in (0.0, 0.3):
        path, _ = launch("sft", {**common, "ptx_coef": coef, "out": str(tmp_path / str(coef))})
        found[coef] = read_summary(path)
    assert found[0.0]["val_text_loss_before"] == found[0.3]["val_text_loss_before"]
    assert found[0.3]["val_text_loss"] < found[0.0]["val_text_loss"] - 0.3
    assert found[0.3]["val_loss"] < found[0.3]["val_loss_before"] - 1
