"""The peer's side: TRL's current GRPOTrainer on the same job, run in its own environment. Argument, answer as ours.

Settings are TRL's best for this size, not its defaults: no gradient checkpointing, no reports or tables, micro-batch =
batch, and `continuous` (the job's) turns on transformers' continuous batching for generation where it is quicker.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import task
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
from trl_watch import TURN_END, Watch


def gold(prompts: list[Any], completions: list[Any], topic: list[str], **columns: Any) -> list[float]:
    """The task's own score, the reward function of both sides; TRL gives messages back as messages."""
    return [task.gold(t, c[0]["content"].strip()) for t, c in zip(topic, completions)]


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Run GRPO; returns seconds between updates, and KL, reward and length of each."""
    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    tokenizer = AutoTokenizer.from_pretrained(job["sft"] + "/model", padding_side="left")
    tokenizer.eos_token = TURN_END
    kinds = {"attn_implementation": job["attention"], "dtype": torch.float32}
    policy = AutoModelForCausalLM.from_pretrained(job["sft"] + "/model", **kinds)
    with open(job["prompts"], encoding="utf-8") as file:
        found = [json.loads(line) for line in file]
    rows = [{"prompt": [{"role": "user", "content": row["prompt"]}], "topic": row["topic"]} for row in found]
    watch = Watch()
    config = GRPOConfig(
        output_dir=job["out"], seed=job["seed"], max_steps=job["updates"] * job["epochs"],
        per_device_train_batch_size=job["batch"], gradient_accumulation_steps=1, num_generations=job["group"],
        num_iterations=job["epochs"], max_completion_length=16, temperature=1.0, beta=job["beta"], loss_type="grpo",
        epsilon=0.2, use_bias_correction_kl=False, learning_rate=job["lr"], lr_scheduler_type="constant",
        gradient_checkpointing=False, bf16=job["precision"] == "bf16", torch_compile=job["compiled"],
        report_to="none", save_strategy="no",
        disable_tqdm=True, use_cpu=True, logging_steps=1, dataloader_pin_memory=False, log_completions=False,
        model_init_kwargs=None,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=policy, reward_funcs=gold, args=config, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, callbacks=[watch],
    )  # fmt: skip
    # its default callbacks print every row of metrics; ours watches alone
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ == "PrinterCallback":
            trainer.callback_handler.remove_callback(callback)
    trainer.train()
    kept = [row for row in watch.rows if "reward" in row]
    steps = watch.marks[:: job["epochs"]]
    return {
        "seconds": [b - a for a, b in zip(steps, steps[1:])],
        "kl": [row.get("kl", 0.0) for row in kept],
        "reward": [row["reward"] for row in kept],
        "length": [row.get("completions/mean_length", 0.0) for row in kept],
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
