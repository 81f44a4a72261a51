"""The peer's side: the losses and gradients of TRL's current trainers on one given batch, run in TRL's own environment.

Argument: a job as JSON with "model", "reference" (folders), "batch" (a safetensors file), "out" (a folder) and "cases"
{name: {"trainer": dpo|kto|grpo|rloo, settings...}}. Writes OUT/NAME.safetensors: "loss" and the policy's gradients.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, KTOConfig, KTOTrainer, RLOOConfig, RLOOTrainer

PLAIN = {
    "report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "save_strategy": "no",
    "disable_tqdm": True, "dataloader_pin_memory": False, "per_device_train_batch_size": 4,
}  # fmt: skip


def trainer_of(kind: str, settings: dict[str, Any], job: dict[str, Any]) -> Any:
    """A trainer on fresh copies of the models; its data set is one row that is never used."""
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    policy, reference = (AutoModelForCausalLM.from_pretrained(job[k], dtype=torch.float32) for k in
                         ("model", "reference"))  # fmt: skip
    common = {**PLAIN, "output_dir": job["out"] + "/trl", **settings}
    pair = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 4
    thumb = [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "b", "completion": "c", "label": False}] * 2
    asked = [{"prompt": "a"}] * 4
    if kind == "dpo":
        return DPOTrainer(model=policy, ref_model=reference, args=DPOConfig(**common),
                          train_dataset=Dataset.from_list(pair), processing_class=tokenizer)  # fmt: skip
    if kind == "kto":
        return KTOTrainer(model=policy, ref_model=reference, args=KTOConfig(**common),
                          train_dataset=Dataset.from_list(thumb), processing_class=tokenizer)  # fmt: skip
    kinds = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}
    maker, config = kinds[kind]
    return maker(model=policy, reward_funcs=lambda completions, **_: [0.0] * len(completions),
                 args=config(**common, num_generations=2), train_dataset=Dataset.from_list(asked),
                 processing_class=tokenizer)  # fmt: skip


def inputs_of(kind: str, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch as that trainer's own collator would give it."""
    names = {
        "dpo": ("input_ids", "attention_mask", "completion_mask"),
        "kto": ("input_ids", "attention_mask", "completion_mask", "KL_input_ids", "KL_attention_mask",
                "KL_completion_mask", "label"),
        "grpo": ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "old_per_token_logps",
                 "ref_per_token_logps", "num_items_in_batch"),
        "rloo": ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "old_logps"),
    }  # fmt: skip
    return {name: batch[f"{kind}/{name}"].clone() for name in names[kind]}


def main(job: dict[str, Any]) -> dict[str, float]:
    """Every case's loss; the gradients are written."""
    batch = load_file(job["batch"])
    losses = {}
    for name, case in job["cases"].items():
        settings = dict(case)
        kind = settings.pop("trainer")
        trainer = trainer_of(kind, settings, job)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        loss = trainer.compute_loss(trainer.model, inputs_of(kind, batch))
        loss.backward()
        found = {key: p.grad.clone() for key, p in trainer.model.named_parameters() if p.grad is not None}
        save_file({"loss": loss.detach().reshape(1), **found}, Path(job["out"]) / f"{name}.safetensors")
        losses[name] = float(loss)
    return losses


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
