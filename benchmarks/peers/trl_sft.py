"""The peer's side: TRL's current SFTTrainer on the same rows as token ids. Argument and answer as ours.

Settings are TRL's best for this size, not its defaults: no gradient checkpointing, no reports; rows grouped by length
where they are not packed. Its loss is the one that makes log-probs in tiles (its default).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import torch
from datasets import Dataset
from memory import peak_mib
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
from trl_watch import Watch


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Train; returns the loop's seconds, (step, loss) of every step, where the model lies, and the peak."""
    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    tokenizer = AutoTokenizer.from_pretrained(job["base"])
    model = AutoModelForCausalLM.from_pretrained(
        job["base"], attn_implementation=job["attention"], dtype=torch.float32
    )
    with open(job["ids"], encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    packed = job["packing"] == "blocks"
    config = SFTConfig(
        output_dir=job["out"], seed=job["seed"], num_train_epochs=1, max_steps=-1 if job["epoch"] else job["steps"],
        per_device_train_batch_size=job["micro"], gradient_accumulation_steps=job["batch"] // job["micro"],
        packing=packed, packing_strategy="bfd", max_length=job["max_length"], completion_only_loss=True,
        train_sampling_strategy="random" if packed else "group_by_length", learning_rate=job["lr"],
        lr_scheduler_type="linear", warmup_steps=max(1, round(0.03 * job["steps"])), adam_beta2=0.999,
        gradient_checkpointing=False, bf16=job["precision"] == "bf16", report_to="none", save_strategy="no",
        disable_tqdm=True, use_cpu=True, logging_steps=1, dataloader_pin_memory=False,
    )  # fmt: skip
    watch = Watch()
    trainer = SFTTrainer(
        model=model, args=config, processing_class=tokenizer, train_dataset=Dataset.from_list(rows), callbacks=[watch]
    )
    trainer.train()
    trainer.save_model(job["out"])
    losses = [(i + 1, row["loss"]) for i, row in enumerate(r for r in watch.rows if "loss" in r)]
    return {
        "seconds": watch.marks[-1] - watch.marks[0], "losses": losses, "model": job["out"],
        "steps": len(watch.marks) - 1, "peak_mib": peak_mib(),
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
