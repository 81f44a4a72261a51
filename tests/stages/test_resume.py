"""Every stage that checkpoints: a process that dies anywhere and is started again ends with the same bits."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from tutelage.model.hub import create_model, save_model
from tutelage.model.tuning import METHODS
from tutelage.pipeline.stages import launch, read_summary
from tutelage.text.tokenizer import ensure_sentinels, train_tokenizer
from tutelage.train import drive

TIMES = {"seconds", "tokens_per_second", "episodes_per_second"}


class Dies(BaseException):
    """Stands for SIGKILL: nothing after it runs but the operating system's own cleaning."""


def made(path):
    """Everything a run is asked for, without times."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    files = sorted((path / "model").glob("*"))
    skipped = path / "skipped.jsonl"
    return {
        "skipped": skipped.read_text() if skipped.exists() else "",
        "files": {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files},
        "rows": json.dumps([{k: v for k, v in row.items() if k not in TIMES} for row in rows]),
        "summary": {k: v for k, v in read_summary(path).items() if k not in TIMES},
    }


def broken(kind, values, out, monkeypatch, die_at):
    """Run until `die_at` steps (counted over processes) were begun, die, and go on, for each number in `die_at`."""
    real, begun = drive.reseed, [0]
    for at in die_at:
        with monkeypatch.context() as patch:

            def reseed(*names, at=at):
                begun[0] += 1
                if begun[0] == at:
                    raise Dies
                real(*names)

            patch.setattr(drive, "reseed", reseed)
            with pytest.raises(Dies):
                launch(kind, {**values, "out": str(out)})
    torch.manual_seed(123)  # another process has drawn other numbers before
    return launch(kind, {**values, "out": str(out)})[0]


@pytest.fixture(scope="session")
def t5(tmp_path_factory):
    """An encoder-decoder with dropout."""
    path = tmp_path_factory.mktemp("t5")
    tokenizer = train_tokenizer(["sam is in the park. eva is in the market."] * 20, 300)
    ensure_sentinels(tokenizer)
    model = create_model("preset:laptop-t5-1m", tokenizer, 128)
    model.config.dropout_rate = 0.1
    save_model(model, tokenizer, path / "model")
    return path


SMALL = {"precision": "fp32", "save_every": 2}
SFT = {**SMALL, "rows": 60, "held_rows": 20, "steps": 7, "batch_size": 8, "eval_every": 3}
SOON = {"eval_every": 1, "patience": 4, "steps": 12, "optimizer": {"name": "adamw", "lr": 0.05, "warmup": 0.3}}
STRICT = {"spike": 0.2, "window": 8, "skips": 8}  # leaves good steps out too
PPO = {**SMALL, "prompts": 40, "updates": 5, "batch_size": 8, "minibatches": 2, "max_tokens": 6, "kl_target": 0.1}


def cases(chain, foreign, t5):
    common = {"tokenizer": str(chain / "tokenizer"), "data": str(chain / "prepare")}
    pretrain = {**SMALL, **common, "steps": 7, "batch_size": 4, "block_size": 32, "eval_every": 3}
    reward = {**SMALL, "model": str(chain / "sft"), "data": str(chain / "rank"), "steps": 7, "batch_size": 4}
    text = {"ptx_data": str(chain / "prepare"), "ptx_batch": 2, "ptx_block": 32}
    ppo = {**PPO, "model": str(chain / "sft"), "reward": str(chain / "reward"), **text}
    early = {"updates": 9, "stop_on": "held_out", "patience": 2, "held_out_rewards": [str(chain / "reward")] * 2}
    online = {k: v for k, v in ppo.items() if k != "kl_target"}
    online |= {"data": "schoolroom:demo", "online": True, "group_size": 4}
    dpo = {**SMALL, "model": str(chain / "sft"), "data": str(chain / "rank"), "updates": 7, "batch_size": 4}
    dpo |= {"eval_every": 3, "eval_prompts": 6, "max_tokens": 4}
    metaicl = {**SMALL, "model": str(chain / "pretrain"), "steps": 7, "batch_size": 4, "eval_every": 3, "shots": 2}
    metaicl |= {"world_tasks": 8, "target_tasks": 2, "limit": 4, "measured": [0]}
    return {
        "pretrain": ("pretrain", {**pretrain, "model": "preset:laptop-0.3m", "probe": "schoolroom:demo"}),
        "pretrain adamw": (
            "pretrain", {**pretrain, "model": str(chain / "pretrain"), "optimizer": {"name": "adamw", "lr": 1e-3}}
        ),
        "pretrain masked": ("pretrain", {**pretrain, "model": "preset:laptop-roberta-1m", "objective": "masked"}),
        "pretrain next sentence": ("pretrain", {**pretrain, "model": "preset:laptop-bert-1m", "objective": "masked",
                                                "next_sentence": True}),
        "pretrain span": ("pretrain", {**pretrain, "model": "preset:laptop-t5-1m", "objective": "span"}),
        "pretrain prefix": ("pretrain", {**pretrain, "model": "preset:laptop-t5-1m", "objective": "prefix"}),
        "sft": ("sft", {**SFT, "model": str(chain / "pretrain")}),
        "sft with text": ("sft", {**SFT, **text, "model": str(chain / "pretrain")}),
        "sft packed": ("sft", {**SFT, "model": str(chain / "pretrain"), "packing": True}),
        **{f"sft {m}": ("sft", {**SFT, "model": str(chain / "pretrain"), "method": m}) for m in METHODS if m != "full"},
        "sft that stops early": ("sft", {**SFT, **SOON, "model": str(chain / "sft")}),
        "sft, strictly guarded": ("sft", {**SFT, "model": str(chain / "pretrain"), "steps": 14, "guard": STRICT}),
        "sft in blocks, recomputed": ("sft", {**SFT, "model": str(chain / "pretrain"), "packing": True,
                                              "block_size": 128, "batch_size": 2, "checkpointing": True}),
        "sft lora of a foreign model": ("sft", {**SFT, "model": str(foreign), "max_length": 96, "method": "lora"}),
        "sft of an encoder-decoder": ("sft", {**SFT, "model": str(t5)}),
        "sft of a foreign model": ("sft", {**SFT, "model": str(foreign), "max_length": 96}),
        "reward": ("reward", reward),
        "reward lora": ("reward", {**reward, "method": "lora", "features": False}),
        "ppo": ("ppo", ppo),
        "ppo, strictly guarded": ("ppo", {**ppo, "updates": 7, "guard": STRICT}),
        "ppo lora": ("ppo", {**ppo, "method": "lora"}),
        "ppo that stops early": ("ppo", {**ppo, **early}),
        "grpo": ("grpo", {**ppo, "group_size": 4}),
        "grpo lora": ("grpo", {**ppo, "group_size": 4, "method": "lora", "kl_in": "loss"}),
        "rloo": ("grpo", {**ppo, "group_size": 4, "advantage": "rloo", "epochs": 2}),
        "online dpo": ("dpo", online),
        "dpo": ("dpo", dpo),
        "dpo lora": ("dpo", {**dpo, "method": "lora"}),
        "dpo with text": ("dpo", {**dpo, **text, "loss": "ipo"}),
        "kto": ("dpo", {**dpo, "loss": "kto"}),
        "metaicl": ("metaicl", metaicl),
        "channel metaicl": ("metaicl", {**metaicl, "channel": True}),
        "self-supervised": ("metaicl", {**metaicl, "objective": "selfsupervised", "documents": 60}),
    }  # fmt: skip


@pytest.mark.parametrize("name", cases(Path("chain"), Path("foreign"), Path("t5")))
def test_dying_anywhere_changes_no_bit(chain, foreign, t5, tmp_path, monkeypatch, name):
    kind, values = cases(chain, foreign, t5)[name]
    whole, _ = launch(kind, {**values, "out": str(tmp_path / "whole")})
    # before the first step, between two checkpoints, and before the second step of a resumed process
    last = broken(kind, values, tmp_path / "broken", monkeypatch, (1, 5, 7))
    assert made(last) == made(whole) and bool(made(whole)["skipped"]) == ("strictly" in name)
    assert not list(last.rglob(".*.part")) and not list(last.rglob(".*.old"))


def test_death_after_training_repeats_only_what_follows(chain, tmp_path, monkeypatch):
    values = {**SFT, "model": str(chain / "pretrain")}
    whole, _ = launch("sft", {**values, "out": str(tmp_path / "whole")})
    from tutelage.stages import sft

    with monkeypatch.context() as patch:
        patch.setattr(sft, "save_model", lambda *_: (_ for _ in ()).throw(Dies))
        with pytest.raises(Dies):
            launch("sft", {**values, "out": str(tmp_path / "broken")})
    steps = []
    real = drive.reseed
    monkeypatch.setattr(drive, "reseed", lambda *names: (steps.append(names), real(*names)))
    last, _ = launch("sft", {**values, "out": str(tmp_path / "broken")})
    assert [s[1] for s in steps] == ["after the steps"] and made(last) == made(whole)


def test_a_resumed_run_keeps_threads_and_precision(chain, tmp_path, monkeypatch):
    """What "auto" gave at the beginning holds, whatever this process would have chosen."""
    values = {**SFT, "model": str(chain / "pretrain"), "precision": "auto", "out": str(tmp_path / "r")}
    monkeypatch.setattr(drive, "resolve_precision", lambda *_: "fp32")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    real = drive.reseed

    def dies(*names):
        if names[2:] == (5,):
            raise Dies
        real(*names)

    monkeypatch.setattr(drive, "reseed", dies)
    with pytest.raises(Dies):
        launch("sft", values)
    monkeypatch.setattr(drive, "reseed", real)
    monkeypatch.setattr(drive, "resolve_precision", lambda *_: "bf16")
    monkeypatch.delenv("OMP_NUM_THREADS")
    out, _ = launch("sft", values)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["dtype"] == "fp32" and manifest["threads"] == 1 and "warnings" not in manifest
