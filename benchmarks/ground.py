"""The checkpoints that both sides of a comparison start from: a 1.06M Llama, its SFT on the task, its reward model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import common
import task


def _write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
    return str(path)


def _base(folder: Path) -> Path:
    """A fresh Llama of 1.06M parameters with a tokenizer in which every word of the task is one token."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tutelage.model.hub import parameter_count, save_model, set_token_ids
    from tutelage.text.tokenizer import train_tokenizer

    if (folder / "config.json").is_file():
        return folder
    rows = task.sft_rows(2000, 0)
    tokenizer = train_tokenizer((f"{r['prompt']} {r['completion']}" for r in rows), 512)
    config = LlamaConfig(
        vocab_size=512, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=432, max_position_embeddings=256, tie_word_embeddings=False, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    set_token_ids(model, tokenizer)
    assert 1.0e6 < parameter_count(model) < 1.1e6
    save_model(model, tokenizer, folder)
    return folder


def ground(quick: bool = False, fresh: bool = False) -> dict[str, str]:
    """Paths of "sft", "reward" (finished runs, kept between calls), "prompts" and "rankings" (JSONL files)."""
    import tutelage

    folder = common.WORK / ("quick" if quick else "full")
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    data = folder / "data"
    sft_rows = _write(data / "sft.jsonl", task.sft_rows(400 if quick else 8000, 1))
    rankings = _write(data / "rankings.jsonl", task.ranking_rows(60 if quick else 2000, 2))
    prompts = _write(data / "prompts.jsonl", task.prompts(200 if quick else 2000, 3))
    sft = tutelage.run(
        "sft", restart=True, model=str(_base(folder / "base")), data=sft_rows, steps=10 if quick else 240,
        batch_size=64, eval_every=0, save_every=0, precision="fp32",
        optimizer={"name": "muon", "lr": 3e-3, "muon_lr": 1e-2}, out=str(folder / "sft"),
    )  # fmt: skip
    reward = tutelage.run(
        "reward", restart=True, model=str(sft), data=rankings, features=False, steps=5 if quick else 150, batch_size=16,
        precision="fp32", save_every=0, optimizer={"lr": 1e-3, "eps": 1e-8}, out=str(folder / "reward"),
    )  # fmt: skip
    return {"sft": str(sft), "reward": str(reward), "prompts": prompts, "rankings": rankings}
