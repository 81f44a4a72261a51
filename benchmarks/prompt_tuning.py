"""Prompt tuning, prefix tuning and LoRA against full tuning on the embedded world: right answers by parameters trained.

One base model, pretrained on the world's documents as recipes/demo.toml has it; the same demonstrations for every
method. Its chat template is plain text (the question, a blank, the answer, the end of text): a frozen model cannot
learn the role tokens of our own template, which no document holds. Measured on held-out questions by the world's
judge, greedy answers.

    python benchmarks/prompt_tuning.py                          # full, then every method below
    python benchmarks/prompt_tuning.py --methods prompt --steps 1300 --note "twice the steps"
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import common

FOLDER = common.WORK / "prompt_tuning"
TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if message['role'] == 'assistant' %}{% generation %}{{- message['content'] + eos_token }}{% endgeneration %}"
    "{%- else %}{{- message['content'] + ' ' }}{%- endif %}"
    "{%- endfor %}"
)
WORLD = "schoolroom:demo"
BAR = 0.05
METHODS: dict[str, dict[str, Any]] = {
    "full": {"optimizer": {"name": "muon", "lr": 4e-3, "muon_lr": 0.01, "decay": 0.7}},
    "prompt": {"prompt": {"tokens": 38}},
    "prefix": {"prompt": {"tokens": 5}},
    "lora": {"lora": {"r": 4}},
}
"""Each method's keys: the learned prompts are as long as half a percent of the parameters allows."""


def base() -> Path:
    """The pretrained model with the plain template, made on the first call."""
    import tutelage
    from tutelage.model.hub import load_model, save_model

    folder = FOLDER / "base"
    if (folder / "config.json").is_file():
        return folder
    tokenizer = tutelage.run("tokenizer", data=WORLD, vocab_size=768, out=str(FOLDER / "tokenizer"))
    shards = tutelage.run("prepare", tokenizer=str(tokenizer), documents=55_000, out=str(FOLDER / "prepare"))
    made = tutelage.run(
        "pretrain", data=str(shards), tokenizer=str(tokenizer), model="preset:laptop-1m", order="file", steps=1200,
        batch_size=24, probe=WORLD, eval_every=400, out=str(FOLDER / "pretrain"),
    )  # fmt: skip
    model, words = load_model(made)
    words.chat_template = TEMPLATE
    save_model(model, words, folder)
    return folder


def right_answers(model_dir: Path, count: int) -> float:
    """Share of held-out questions answered rightly."""
    from tutelage.engine import SamplingParams, load
    from tutelage.schoolroom.rows import correct_reward
    from tutelage.train.sources import prompts

    rows = prompts(WORLD, "heldout", count, 1)
    engine: Any = load(model_dir)
    asked = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    answers = [o.text.strip() for o in engine.generate(asked, SamplingParams(max_tokens=24, temperature=0))]
    right = correct_reward([row["prompt"] for row in rows], answers, item=[row["item"] for row in rows])
    return sum(value > 0 for value in right) / len(right)


def tune(method: str, more: dict[str, Any], steps: int, seed: int, count: int) -> dict[str, Any]:
    """Train one method and measure it."""
    import tutelage
    from tutelage.core.stats import wilson

    out = FOLDER / f"{method}-{seed}"
    shutil.rmtree(out, ignore_errors=True)
    keys = {"rows": 50_000, "steps": steps, "batch_size": 64, "eval_every": 0, "save_every": 0, "seed": seed}
    tutelage.run("sft", model=str(base()), data=WORLD, method=method, out=str(out), **{**keys, **more})
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    share = right_answers(out, count)
    return {
        "method": method, "keys": more, "steps": steps, "seed": seed, "right": share,
        "interval": wilson(round(share * count), count),
        "trained_share": summary["trained_parameters"] / summary["parameters"], "val_loss": summary["val_loss"],
    }  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--steps", type=int, default=650)
    parser.add_argument("--lr", type=float, help="AdamW's peak rate, where the method's own is not to be taken")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--note", default="", help="why this attempt")
    args = parser.parse_args(argv)
    from tutelage.core.runtime import set_threads

    set_threads()
    file = common.RESULTS / "prompt_tuning.json"
    row = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"name": "prompt_tuning", "attempts": []}
    row |= {"bar": f"prompt tuning within {BAR} of full, < 0.5% trained", "base": right_answers(base(), args.questions)}
    for method in args.methods:
        more = METHODS[method] | ({"optimizer": {"name": "adamw", "lr": args.lr}} if args.lr else {})
        found = {**tune(method, more, args.steps, args.seed, args.questions), "note": args.note}
        row["attempts"].append(found)
        print(f"{method}: {found['right']:.3f} right, {found['trained_share']:.2%} trained  {found}", flush=True)
        row["machine"] = common.machine()
        common.save("prompt_tuning", row, quick=False)


if __name__ == "__main__":
    main()
