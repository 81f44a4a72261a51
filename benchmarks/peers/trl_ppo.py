"""The peer's side: TRL's PPOTrainer on the same job, run in TRL's own environment. Argument and answer as ours.

Settings are TRL's best for this size, not its defaults: no gradient checkpointing (default on), no sample tables, no
reports, one rollout batch, micro-batch = batch.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer
from trl_watch import TURN_END, Watch


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Run PPO; returns seconds between updates, KL and score of each, and the answers of each with their prompts."""
    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    tokenizer = AutoTokenizer.from_pretrained(job["sft"] + "/model", padding_side="left")
    tokenizer.eos_token = TURN_END
    kinds = {"attn_implementation": job["attention"], "dtype": torch.float32}
    policy = AutoModelForCausalLM.from_pretrained(job["sft"] + "/model", **kinds)
    reference = AutoModelForCausalLM.from_pretrained(job["sft"] + "/model", **kinds)
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(job["reward"] + "/model", num_labels=1, **kinds)
        for _ in range(2)
    )
    policy.generation_config.pad_token_id = tokenizer.pad_token_id
    seen: list[torch.Tensor] = []
    reward.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(
            torch.where(kwargs["attention_mask"], kwargs["input_ids"], tokenizer.pad_token_id)
        ),
        with_kwargs=True,
    )
    with open(job["encoded"], encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    watch = Watch()
    config = PPOConfig(
        output_dir=job["out"], seed=job["seed"], total_episodes=64 * job["updates"], per_device_train_batch_size=64,
        gradient_accumulation_steps=1, num_mini_batches=1, num_ppo_epochs=4, local_rollout_forward_batch_size=64,
        response_length=16, stop_token="eos", temperature=1.0, missing_eos_penalty=1.0, kl_coef=job["kl_coef"],
        learning_rate=job["lr"], lr_scheduler_type="constant", gradient_checkpointing=False,
        bf16=job["precision"] == "bf16", torch_compile=job["compiled"], num_sample_generations=0,
        report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True, logging_steps=1,
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = PPOTrainer(
        args=config, processing_class=tokenizer, model=policy, ref_model=reference, reward_model=reward,
        value_model=value, train_dataset=Dataset.from_list([{"input_ids": row["ids"]} for row in rows]),
        eval_dataset=Dataset.from_list([{"input_ids": row["ids"]} for row in rows[:64]]), callbacks=[watch],
    )  # fmt: skip
    # its default callbacks print every row of metrics; ours watches alone
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ == "PrinterCallback":
            trainer.callback_handler.remove_callback(callback)
    trainer.train()
    back = {tuple(row["ids"]): row["prompt"] for row in rows}
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    answers, lengths = [], []
    for batch in seen:
        texts, tokens = [], 0
        for ids in batch.tolist():
            real = [t for t in ids if t != pad]
            prompt = next(real[:n] for n in range(len(real), 0, -1) if tuple(real[:n]) in back)
            tokens += len(real) - len(prompt)
            answer = [t for t in real[len(prompt) :] if t != end]
            texts.append((back[tuple(prompt)], tokenizer.decode(answer).strip()))
        answers.append(texts)
        lengths.append(tokens / len(texts))
    kept = [row for row in watch.rows if "objective/kl" in row]
    return {
        "seconds": [b - a for a, b in zip(watch.marks, watch.marks[1:])],
        "kl": [row["objective/kl"] for row in kept],
        "score": [row["objective/scores"] for row in kept],
        "length": lengths,
        "answers": answers,
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
