"""Reward models on real preferences: held-out accuracy beside the length rule; K-wise against shuffled pairs; padding.

    TUTELAGE_DATA=... python benchmarks/real_reward.py --full      # recipes/real/hh_rlhf.toml and alpaca_eval.toml
    python benchmarks/real_reward.py --folds 5                     # hh_rlhf.toml, every pair held out once
    python benchmarks/real_reward.py --control                     # all pairs of a prompt together, or apart
    python benchmarks/real_reward.py --speed                       # like lengths together, or all padded to the longest

--control trains two reward models on the same pairs of the same prompts and measures both on the rankings they were
trained on and on held-out ones: once with all pairs of a prompt in one batch element (K forwards a prompt), once with
every pair as an example of its own, shuffled (K(K-1) forwards). InstructGPT (sec. 3.5) found that the second overfits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import common

import tutelage

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("TUTELAGE_DATA", ""))
KWAY = DATA / "pref/alpaca_eval_gpt4judge/split/dev_kway.jsonl"
SHOWN = (
    "accuracy", "accuracy_low", "accuracy_high", "pairs", "accuracy_by_prompt", "accuracy_by_prompt_low",
    "accuracy_by_prompt_high", "length_rule", "length_only_accuracy", "over_length", "over_length_low",
    "over_length_high", "train_accuracy", "kendall_tau", "calibration_error", "length_correlation", "train_prompts",
    "held_prompts", "prompts_cut", "responses_cut",
)  # fmt: skip
Rows = list[dict[str, Any]]


def full(out: Path, text: Path) -> dict[str, Any]:
    """Run the recipes (and that of the base model, in `text`; finished stages are kept) and show their reports."""
    from tutelage.pipeline.recipe import run_recipe

    recipes = ROOT / "recipes" / "real"
    novels = run_recipe(recipes / "novels.toml", {"out": str(text / "novels")})
    model = {"model": str(novels / "pretrain")}
    found = {}
    for name in ("hh_rlhf", "alpaca_eval"):
        run = run_recipe(recipes / f"{name}.toml", {"out": str(out / name), "reward": model})
        summary = json.loads((run / "reward" / "summary.json").read_text(encoding="utf-8"))
        found[name] = {key: summary[key] for key in SHOWN}
        show(name, found[name])
    return found


def show(name: str, row: dict[str, Any]) -> None:
    """The row as lines."""
    print(name)
    for key, value in row.items():
        print(f"  {key:24} {value:.4f}" if isinstance(value, float) else f"  {key:24} {value}", flush=True)


def chosen(row: dict[str, Any], k: int, rng: random.Random) -> dict[str, Any]:
    """The row with `k` of its responses, drawn by `rng`."""
    keep = sorted(rng.sample(range(len(row["responses"])), k))
    groups = [[keep.index(i) for i in group if i in keep] for group in row["ranking"]]
    texts = [row["responses"][i] for i in keep]
    return {"prompt": row["prompt"], "responses": texts, "ranking": [group for group in groups if group]}


def single_pairs(rows: Rows, rng: random.Random) -> Rows:
    """Every ordered pair of every row as a row of its own, shuffled."""
    from tutelage.train.reward_report import better_pairs

    out = [
        {"prompt": row["prompt"], "chosen": row["responses"][a], "rejected": row["responses"][b]}
        for row in rows
        for a, b, _ in better_pairs(row)
    ]
    rng.shuffle(out)
    return out


def scored(run: Path, rows: Rows, max_length: int) -> list[list[float]]:
    """The trained model's scores of every row's responses."""
    from tutelage.model.heads import RewardModel
    from tutelage.model.hub import load_tokenizer
    from tutelage.train.reward_data import encode_ranking, score_rankings

    model, tokenizer = RewardModel.load(run).eval(), load_tokenizer(run)
    encoded = [encode_ranking(row, tokenizer, max_length) for row in rows]
    return score_rankings(model, encoded, tokenizer.pad_token_id)


def folds(out: Path, model: str, recipe: str, count: int) -> dict[str, Any]:
    """The recipe's reward model trained `count` times, each time on the questions of all folds but one; one report on
    all rows, each scored by the model that never saw its question."""
    from tutelage.core.config import expand, read_toml
    from tutelage.text.chat import as_messages
    from tutelage.train.reward_report import prefers_longer, reward_report
    from tutelage.train.sources import rankings

    values = expand(read_toml(ROOT / "recipes" / "real" / f"{recipe}.toml")["reward"])
    rows = [row for side in rankings(values["data"]) for row in side]
    parts: list[Rows] = [[] for _ in range(count)]
    for row in rows:
        asked = next(m["content"] for m in as_messages({"prompt": row["prompt"]}) if m["role"] == "user")
        parts[int(hashlib.sha256(asked.encode()).hexdigest(), 16) % count].append(row)
    out.mkdir(parents=True, exist_ok=True)
    held: Rows = []
    scores: list[list[float]] = []
    for number, part in enumerate(parts):
        files = {"train": [row for other in parts if other is not part for row in other], "held": part}
        for name, some in files.items():
            text = "".join(json.dumps(row) + "\n" for row in some)
            (out / f"{name}-{number}.jsonl").write_text(text, encoding="utf-8")
            values |= {"data" if name == "train" else "held_out": str(out / f"{name}-{number}.jsonl")}
        run = tutelage.run("reward", **{**values, "model": model, "out": str(out / f"fold-{number}")})
        held, scores = held + part, scores + scored(run, part, values["max_length"])
        print(f"{recipe}, fold {number + 1}: {len(part)} rows", flush=True)
    longer = prefers_longer(rows)
    found = {"length_rule": "longer" if longer else "shorter", "folds": count, "rows": len(held)}
    found |= reward_report(held, scores, [None] * len(held), longer)
    show(f"{recipe}, {count} folds", found)
    return found


def measured(run: Path, rows: Rows, max_length: int) -> dict[str, float]:
    """Accuracy over pairs and K-wise loss of the trained model on rankings."""
    from tutelage.train.reward_report import better_pairs, pair_accuracy

    scores = scored(run, rows, max_length)
    losses = []
    for row, score in zip(rows, scores):
        nats = [math.log1p(math.exp(score[b] - score[a])) for a, b, _ in better_pairs(row)]
        losses.append(sum(nats) / max(1, len(nats)))
    return {"accuracy": pair_accuracy(rows, scores), "loss": sum(losses) / len(losses)}


def control(out: Path, model: str, args: argparse.Namespace) -> Rows:
    """K-wise against shuffled pairs on the same comparisons, after each number of passes."""
    from tutelage.train.sources import rankings

    rng = random.Random(args.seed)
    train, held = rankings(str(KWAY))
    rows = [chosen(row, args.responses, rng) for row in train[: args.prompts]]
    out.mkdir(parents=True, exist_ok=True)
    files = {"kwise": rows, "pairs": single_pairs(rows, rng), "held": held}
    for name, part in files.items():
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    per_prompt = len(files["pairs"]) / len(rows)
    found = []
    for passes in args.passes:
        steps = max(1, round(passes * len(rows) / args.batch))
        for name in ("kwise", "pairs"):
            batch = args.batch if name == "kwise" else round(args.batch * per_prompt)  # the same comparisons a step
            began = time.perf_counter()
            run = tutelage.run(
                "reward", model=model, data=str(out / f"{name}.jsonl"), held_out=str(out / "held.jsonl"), steps=steps,
                batch_size=batch, max_length=args.max_length, features=False, save_every=0, seed=args.seed,
                optimizer={"name": "adamw", "lr": args.lr, "eps": 1e-5, "decay": 0.9},
                out=str(out / f"{name}-{passes}"),
            )  # fmt: skip
            row: dict[str, Any] = {"labels": name, "passes": passes, "seconds": round(time.perf_counter() - began)}
            for side, part in (("train", rows), ("held", held)):
                row |= {f"{side}_{key}": value for key, value in measured(run, part, args.max_length).items()}
            row["accuracy_gap"] = row["train_accuracy"] - row["held_accuracy"]
            found.append(row)
            show(f"{name}, {passes} passes over {len(rows)} prompts of {args.responses}", row)
    return found


def speed(model: str, data: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the same training steps on real rows: one block a batch against parts of like lengths, by turns."""
    from tutelage.model.heads import create_reward_model
    from tutelage.model.hub import load_model
    from tutelage.train.objectives import kwise
    from tutelage.train.optim import OptimConfig, Optimizers
    from tutelage.train.reward_data import PART_TOKENS, collate_rankings, encode_ranking
    from tutelage.train.sources import rankings

    sft, tokenizer = load_model(model)
    rows = random.Random(args.seed).sample(rankings(str(data))[0], args.batch * args.steps)
    encoded = [encode_ranking(row, tokenizer, args.max_length) for row in rows]
    found: dict[str, Any] = {"real_tokens": sum(len(ids) for row in encoded for ids in row["ids"])}

    def steps(tokens: int) -> tuple[float, int]:
        reward = create_reward_model(sft, tokenizer, seed=0)
        optimizers = Optimizers(reward, OptimConfig())
        began, padded = time.perf_counter(), 0
        for start in range(0, len(encoded), args.batch):
            batch = collate_rankings(encoded[start : start + args.batch], tokenizer.pad_token_id, tokens)
            loss, metrics = kwise(reward, batch)
            loss.backward()
            optimizers.step(0.5)
            padded += metrics["tokens"]
        return time.perf_counter() - began, padded

    times: dict[str, list[float]] = {"one_block": [], "parts": []}
    for _ in range(args.repeats):
        for name, tokens in (("one_block", 10**9), ("parts", PART_TOKENS)):
            seconds, found[f"{name}_tokens"] = steps(tokens)
            times[name].append(seconds)
    found |= {f"{name}_seconds": statistics.median(values) for name, values in times.items()}
    found["ratio"] = statistics.median(a / b for a, b in zip(times["one_block"], times["parts"]))
    show(f"{data.name}: {args.steps} steps of {args.batch} prompts, at most {args.max_length} tokens", found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("full", "control", "speed"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--folds", type=int, default=0, help="train on all but one of N parts, N times")
    parser.add_argument("--recipe", default="hh_rlhf", help="of --folds")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "soak" / "real_reward")
    parser.add_argument("--text", type=Path, default=ROOT / "runs" / "soak" / "real_text", help="the base model's runs")
    parser.add_argument("--model", help="base of the others (that of novels.toml in --text)")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--responses", type=int, default=6, help="responses a prompt in --control")
    parser.add_argument("--passes", type=int, nargs="*", default=[1, 3])
    parser.add_argument("--batch", type=int, default=8, help="prompts a step in --control and --speed")
    parser.add_argument("--steps", type=int, default=6, help="steps of --speed")
    parser.add_argument("--repeats", type=int, default=3, help="turns of --speed")
    parser.add_argument("--data", type=Path, default=KWAY, help="preferences of --speed")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not KWAY.is_file():
        parser.error("set TUTELAGE_DATA to the folder of real data")
    from tutelage.core.runtime import set_threads

    set_threads()
    model = args.model or str(args.text / "novels" / "pretrain")
    found: dict[str, Any] = {"machine": common.machine(), "args": {k: str(v) for k, v in vars(args).items()}}
    if args.full:
        found["recipes"] = full(args.out, args.text)
    if args.folds:
        found["folds"] = folds(args.out / "folds" / args.recipe, model, args.recipe, args.folds)
    if args.control:
        found["control"] = control(args.out / "control", model, args)
    if args.speed:
        found["speed"] = speed(model, args.data, args)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "real_reward.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
