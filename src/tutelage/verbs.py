"""The verbs that run a stage or a study: what the command line's help says of each. Plain words, nothing imported."""

from __future__ import annotations

MAIN = {
    "tokenizer": ("Train a tokenizer (byte-level BPE).", "data=corpus.txt vocab_size=4096 out=runs/tokenizer"),
    "prepare": ("Turn text into token shards.", "data=corpus.txt tokenizer=runs/tokenizer out=runs/tokens"),
    "pretrain": (
        "Train a language model on token shards.",
        "data=runs/tokens tokenizer=runs/tokenizer model=preset:laptop-1m out=runs/base",
    ),
    "mixture": (
        "Turn tasks and templates into rows for sft (instruction tuning).",
        "ready=P3 without=[paraphrase] tokenizer=runs/base out=runs/mixture",
    ),
    "sft": ("Fine-tune a base model on dialogues.", "model=runs/base data=chats.jsonl out=runs/sft"),
    "rank": (
        "Sample K answers per prompt and have them ranked.",
        "model=runs/sft data=prompts.jsonl judge=judge.py:score responses=4 out=runs/rank",
    ),
    "reward": ("Train a reward model on rankings.", "model=runs/sft data=runs/rank out=runs/reward"),
    "ppo": (
        "Improve a model against a reward (PPO-ptx).",
        "model=runs/sft reward=runs/reward data=prompts.jsonl out=runs/ppo",
    ),
    "constitution": (
        "Constitutional AI: a model criticises and revises its own answers by principles.",
        "model=runs/sft data=red-team.jsonl helpful=prompts.jsonl out=runs/constitution",
    ),
    "feedback": (
        "Constitutional AI: a model labels pairs of answers by principles.",
        "model=runs/sl judge=runs/sft data=red-team.jsonl mix=runs/rank out=runs/feedback",
    ),
    "conduct": (
        "Measure harmful answers, helpfulness and over-refusal.",
        "model=runs/sl data=red-team.jsonl helpful=prompts.jsonl out=runs/conduct",
    ),
    "dpo": (
        "Improve a model on preferences directly (DPO, IPO, KTO; online=true: on its own answers).",
        "model=runs/sft data=runs/rank out=runs/dpo",
    ),
    "grpo": (
        "Improve a model against a reward without a critic (GRPO, RLOO).",
        "model=runs/sft reward=judge.py:score data=prompts.jsonl advantage=rloo out=runs/grpo",
    ),
    "bestofn": (
        "Sample n answers to each prompt and keep the best by a reward.",
        "model=runs/sft reward=runs/reward data=prompts.jsonl n=16 out=runs/bestofn",
    ),
    "star": (
        "Learn from the model's own rationales, those that come out right (STaR).",
        "model=runs/base data=gsm8k out=runs/star",
    ),
    "metaicl": (
        "Train a model to learn in context, on tasks (MetaICL) or on plain text (self-supervised).",
        "model=runs/base tasks=[subj,trec] targets=[sst2,cr] data=DATA shots=8 out=runs/metaicl",
    ),
    "evaluate": (
        "Measure a reward model on rankings, beside the people who made them.",
        "model=runs/reward data=rankings.jsonl out=runs/evaluate",
    ),
    "icl": (
        "In-context learning on a task; lists make a sweep.",
        'task=sst2 data=DATA model=runs/base shots=[0,4,16] score=[direct,channel] seeds=5 out=runs/icl',
    ),
}
"""Stages: what each does, and the words of an example."""
STUDIES = {
    "ginc": ("In-context learning as Bayesian inference: a mixture of HMMs beside its exact posterior.",
             "out=runs/ginc"),
    "induction": ("Induction heads: when they form, and the scores of a model's heads.",
                  "model=runs/base out=runs/heads"),
    "study-star": ("STaR: a model that adds two digits teaches itself five, with and without rationalisation.",
                   "out=runs/star-study"),
    "architectures": ("Decoder, encoder and encoder-decoder at equal compute: prompted, fine-tuned, instruction-tuned.",
                      "sizes=[0.3m,1m] seeds=2 out=runs/architectures"),
    "overoptimisation": ("Reward hacking: gold and proxy against sqrt(KL) by reward model and KL coefficient.",
                         "model=runs/demo/sft rankings=runs/demo/rank ptx_data=runs/demo/prepare out=runs/overopt"),
    "fabrication": ("Made-up facts: confident wrong answers to what cannot be known, for base, SFT and RLHF.",
                    "models.sft=runs/demo/sft models.rlhf=runs/demo/ppo out=runs/fabrication"),
    "reward_curve": ("Reward models by number of comparisons and by size, beside how far people agree.",
                     "out=runs/reward_curve"),
    "instruction_tuning": ("Instruction tuning: held-out kinds of tasks by number of training templates.",
                           "data=P3 model=runs/base out=runs/instruction"),
}  # fmt: skip
"""Studies: the same."""
