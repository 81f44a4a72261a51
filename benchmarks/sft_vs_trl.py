"""SFT against TRL's current SFTTrainer: tokens per second with the same loss, and peak memory at vocabulary 150k.

Same from-scratch Llama, the same token ids of the same rows (half `instr/alpaca_zh`, half T0 templates under
TUTELAGE_DATA), loss on the completions only, AdamW with one schedule, one epoch; each library in its own process, at
the batching, precision and attention that are quickest for it on this machine (tried first). Tokens are those of the
rows: the same number for both, padding not counted. Both models are measured on the same held-out rows by one program.

    python benchmarks/sft_vs_trl.py trials            # the first call makes .venv-bench-trl_now
    python benchmarks/sft_vs_trl.py speed --seeds 3   # with the settings that the trials chose
    python benchmarks/sft_vs_trl.py memory
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import common

PEERS = Path(__file__).resolve().parent / "peers"
SCRATCH = common.WORK / "sft"
MAX_LENGTH, HELD, LR = 512, 200, 1e-3
BLOCKS = {"packing": "blocks", "batch": 16}
ROWS = {"packing": "none", "batch": 80}
"""A step of about 8,000 tokens either way."""
OURS = [
    {**BLOCKS, "precision": "bf16"}, {**ROWS, "packing": "rows", "precision": "bf16"}, {**ROWS, "precision": "bf16"},
    {**BLOCKS, "precision": "fp32"},
]  # fmt: skip
THEIRS = [
    {**BLOCKS, "micro": 1, "precision": "bf16", "attention": "sdpa"},
    {**BLOCKS, "micro": 4, "precision": "bf16", "attention": "sdpa"},
    {**ROWS, "micro": 80, "precision": "bf16", "attention": "sdpa"},
    {**ROWS, "micro": 80, "precision": "bf16", "attention": "eager"},
]
"""TRL joins a micro-batch of blocks to one row, so the number of them in it matters."""
SIZES = {"speed": (8192, 256, 6), "memory": (150_000, 256, 4)}
"""Vocabulary, width, layers."""


def texts(seed: int, count: int) -> list[dict[str, str]]:
    """Rows {"prompt", "completion"}: half of alpaca_zh, half of the T0 templates in equal shares."""
    from tutelage.train.sources import conversations

    folder = Path(os.environ["TUTELAGE_DATA"]) / "instr"
    rng = random.Random(seed)
    chinese = conversations(str(folder / "alpaca_zh"), "all", 20_000, 0)
    tasks = sorted(f for f in (folder / "t0_p3_templates").glob("*.jsonl") if f.stat().st_size)
    english = [row for file in tasks for row in conversations(str(file), "all", 40, 0)]
    rows = [{"prompt": _prompt(r), "completion": r["output"]} for r in chinese]
    both = rng.sample(rows, count // 2) + rng.sample(english, count - count // 2)
    rng.shuffle(both)
    return both


def _prompt(row: dict[str, str]) -> str:
    return f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]


def base(kind: str) -> Path:
    """The model that both sides start from, made on the first call; its tokenizer is trained on rows of both sets."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tutelage.model.hub import save_model, set_token_ids
    from tutelage.text.chat import ensure_chat
    from tutelage.text.tokenizer import ensure_pad, train_tokenizer

    folder = SCRATCH / f"base-{kind}"
    if (folder / "config.json").is_file():
        return folder
    vocabulary, width, layers = SIZES[kind]
    rows = texts(1, 6000)
    tokenizer = train_tokenizer((f"{r['prompt']} {r['completion']}" for r in rows), SIZES["speed"][0])
    ensure_pad(tokenizer)
    ensure_chat(tokenizer)
    config = LlamaConfig(
        vocab_size=max(vocabulary, len(tokenizer)), hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=4, intermediate_size=11 * width // 4, max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    set_token_ids(model, tokenizer)
    save_model(model, tokenizer, folder)
    return folder


def write_data(folder: Path, model: Path, seed: int, count: int) -> dict[str, Any]:
    """`count` training rows and the held-out ones as text for us, the same training rows as token ids for the peer."""
    from tutelage.model.hub import load_tokenizer
    from tutelage.stages.sft import encode_rows

    tokenizer = load_tokenizer(model)
    fitting = []
    for row in texts(100 + seed, 2 * (count + HELD)):
        (encoded,) = encode_rows([row], tokenizer, MAX_LENGTH + 1) or ({"input_ids": range(MAX_LENGTH + 1)},)
        if len(encoded["input_ids"]) <= MAX_LENGTH:
            fitting.append((row, encoded))
    unique = {row["prompt"]: (row, encoded) for row, encoded in fitting}  # no question on both sides
    chosen = list(islice(unique.values(), count + HELD))
    train, held = chosen[:count], chosen[count:]
    ids = [
        {"input_ids": e["input_ids"], "completion_mask": [int(label != -100) for label in e["labels"]]}
        for _, e in train
    ]
    files = {"rows": [r for r, _ in train], "held": [r for r, _ in held], "ids": ids}
    for name, lines in files.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    tokens = sum(len(e["input_ids"]) for _, e in train)
    return {name: str(folder / f"{name}.jsonl") for name in files} | {"tokens": tokens, "count": len(train)}


def held_out_loss(model_dir: str, file: str) -> float:
    """Nats per answer token of a saved model on the held-out rows."""
    from tutelage.model.hub import load_model
    from tutelage.stages.sft import answer_loss, encode_rows
    from tutelage.text.chat import turn_end_id

    model, tokenizer = load_model(model_dir)
    rows = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
    encoded = encode_rows(rows, tokenizer, MAX_LENGTH)
    return float(answer_loss(model, encoded, tokenizer.pad_token_id, turn_end_id(tokenizer))["val_loss"])


def steps_of(settings: dict[str, Any], data: dict[str, Any]) -> int:
    """Optimiser steps of one epoch on our side: blocks or rows, `batch` of them a step."""
    from tutelage.text.loader import pack_rows

    units = data["count"]
    if settings["packing"] == "blocks":
        rows = [json.loads(line) for line in Path(data["ids"]).read_text(encoding="utf-8").splitlines()]
        units = len(pack_rows([{"input_ids": r["input_ids"], "labels": r["input_ids"]} for r in rows], MAX_LENGTH))
    return -(-units // settings["batch"])


def go(name: str, kind: str, settings: dict[str, Any], seed: int, count: int, steps: int | None = None) -> Any:
    """One run of one side; its answer with tokens per second and, after a whole epoch, the held-out loss."""
    model = base(kind)
    SCRATCH.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        data = write_data(Path(folder), model, seed, count)
        job = {
            **data, **settings, "base": str(model), "seed": seed, "lr": LR, "max_length": MAX_LENGTH,
            "steps": steps or steps_of(settings, data), "epoch": steps is None, "out": str(Path(folder) / "out"),
            "threads": len(os.sched_getaffinity(0)),
        }  # fmt: skip
        python = common.peer_python("trl_now") if name == "trl" else sys.executable
        out = common.run_side(python, PEERS / f"{name}_sft.py", job)
        if steps is None:
            out |= {"tokens_per_second": data["tokens"] / out["seconds"], "tokens": data["tokens"]}
            out["held_loss"] = held_out_loss(out.pop("model"), data["held"])
        return out


def chosen() -> dict[str, Any]:
    """The settings that the trials found quickest; without trials, the first of each list."""
    file = SCRATCH / "chosen.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    return {"settings": {"ours": OURS[0], "trl": THEIRS[0]}, "trials": {}}


def trials(count: int, only: str | None) -> None:
    """Try every setting on `count` rows and write down the quickest of each side."""
    found = chosen()
    for name, choices in (("ours", OURS), ("trl", THEIRS)):
        if only in (None, name):
            tried = [{**c, "tokens_per_second": round(go(name, "speed", c, 99, count)["tokens_per_second"])}
                     for c in choices]  # fmt: skip
            tried.sort(key=lambda t: -t["tokens_per_second"])
            found["trials"][name] = tried
            found["settings"][name] = {k: v for k, v in tried[0].items() if k != "tokens_per_second"}
            print(name, *tried, sep="\n  ", flush=True)
    (SCRATCH / "chosen.json").write_text(json.dumps(found), encoding="utf-8")


def speed(seeds: int, count: int, quick: bool) -> dict[str, Any]:
    """An epoch of each side, seed by seed."""
    found, runs = chosen(), []
    for seed in range(seeds):
        pair = {name: go(name, "speed", found["settings"][name], seed, count) for name in ("ours", "trl")}
        runs.append({"seed": seed, **pair})
        words = [f"{pair[n]['tokens_per_second']:.0f} tokens/s, held-out loss {pair[n]['held_loss']:.4f}" for n in pair]
        print(f"seed {seed}: {words[0]} against {words[1]}", flush=True)
    ours, peer = (statistics.median(r[name]["tokens_per_second"] for r in runs) for name in ("ours", "trl"))
    ratio = statistics.median(r["ours"]["tokens_per_second"] / r["trl"]["tokens_per_second"] for r in runs)
    gap = common.mean_interval([r["ours"]["held_loss"] - r["trl"]["held_loss"] for r in runs])
    row = {
        "name": "sft_vs_trl", "what": "SFT tokens/s, 9M Llama, alpaca_zh and T0 rows, loss on completions",
        "ours": ours, "peer": peer, "unit": "tokens/s", "ratio": ratio, "bar": ">= 1.5", "met": ratio >= 1.5,
        "held_loss_ours_minus_theirs": gap, **found, "peers": list(common.PEERS["trl_now"]),
        "machine": common.machine(), "runs": runs,
    }  # fmt: skip
    print(common.verdict(row))
    print(f"held-out loss, ours minus TRL's: {gap[0]:+.4f} +- {gap[1]:.4f} over {seeds} seeds")
    common.save("sft_vs_trl", row, quick)
    return row


def memory(steps: int, quick: bool) -> dict[str, Any]:
    """Peak resident memory of each side's process over a few steps at vocabulary 150k."""
    # one block of 512 tokens a step for both: with more, the side that accumulates over smaller batches would hold less
    settings = {name: {**found, **BLOCKS, "batch": 1, "micro": 1} for name, found in chosen()["settings"].items()}
    peaks = {name: go(name, "memory", settings[name], 0, 400, steps)["peak_mib"] for name in ("ours", "trl")}
    ratio = peaks["ours"] / peaks["trl"]
    row = {
        "name": "sft_memory_vs_trl", "what": f"peak memory of SFT at vocabulary 150k, {steps} steps",
        "ours": peaks["ours"], "peer": peaks["trl"], "unit": "MiB", "ratio": ratio, "bar": "<= 1.0",
        "met": ratio <= 1.0, "settings": settings, "peers": list(common.PEERS["trl_now"]), "machine": common.machine(),
    }  # fmt: skip
    print(common.verdict(row))
    common.save("sft_memory_vs_trl", row, quick)
    return row


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["trials", "speed", "memory"])
    parser.add_argument("--quick", action="store_true", help="few rows and steps, nothing written: does it run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1600)
    parser.add_argument("--only", choices=["ours", "trl"], help="trials of one side")
    args = parser.parse_args(argv)
    from tutelage.core.runtime import set_threads

    set_threads()
    if args.part == "trials":
        trials(80 if args.quick else args.rows // 8, args.only)
    elif args.part == "speed":
        speed(1 if args.quick else args.seeds, 160 if args.quick else args.rows, args.quick)
    else:
        memory(1 if args.quick else 4, args.quick)


if __name__ == "__main__":
    main()
