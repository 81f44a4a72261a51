"""The peer's side: TRL's RewardTrainer on the pairs of the same rankings. Argument and answer as ours.

The pairs come tokenised, so that only training is timed; no gradient checkpointing, no reports.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import RewardConfig, RewardTrainer


class Clock(TrainerCallback):
    """When each optimiser step ended."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.marks.append(time.perf_counter())


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Train on the pairs once over; returns the loop's seconds and where the model lies."""
    torch.set_num_threads(job["threads"])
    tokenizer = AutoTokenizer.from_pretrained(job["sft"] + "/model")
    torch.manual_seed(job["seed"])
    model = AutoModelForSequenceClassification.from_pretrained(
        job["sft"] + "/model", num_labels=1, attn_implementation=job["attention"], dtype=torch.float32
    )
    with open(job["pairs"], encoding="utf-8") as file:
        pairs = [json.loads(line) for line in file]
    config = RewardConfig(
        output_dir=job["out"], seed=job["seed"], num_train_epochs=1, per_device_train_batch_size=job["batch_pairs"],
        learning_rate=job["lr"], lr_scheduler_type="linear", warmup_steps=3, gradient_checkpointing=False,
        bf16=job["precision"] == "bf16", report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True,
        logging_steps=1000, max_length=None, dataloader_pin_memory=False, dataloader_drop_last=True,
    )  # fmt: skip
    clock = Clock()
    trainer = RewardTrainer(
        model=model, args=config, processing_class=tokenizer, train_dataset=Dataset.from_list(pairs), callbacks=[clock]
    )
    trainer.train()
    trainer.save_model(job["out"])
    steps = len(clock.marks)
    seconds = clock.marks[-1] - clock.marks[0]
    done = steps * job["batch_pairs"] / len(pairs)  # dropped last batch
    return {"seconds": seconds, "share": (steps - 1) / steps * done, "model": job["out"]}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
