"""`tutelage plan` against the memory that stages really take: peak resident set above what the imports alone take.

    python benchmarks/plan_memory.py [--quick]

Each configuration runs in a process of its own, on CPU, two or three steps with the measurement at the end. The bar is
10% of the measured peak.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from common import WORK, machine, run_side, save

FOLDER = WORK / "plan"
CASES: dict[str, dict[str, Any]] = {
    "pretrain 5M, 32 x 192, fp32": {"kind": "pretrain", "model": "laptop-5m", "batch_size": 32, "block_size": 192},
    "pretrain 1M, 96 x 256, bf16": {
        "kind": "pretrain", "model": "laptop-1m", "batch_size": 96, "block_size": 256, "precision": "bf16",
    },
    "pretrain GPT-2 125M, 2 x 128, fp32": {
        "kind": "pretrain", "model": "gpt3-125m", "batch_size": 2, "block_size": 128,
    },
    "sft 5M, 64 x 160, fp32": {"kind": "sft", "model": "laptop-5m", "batch_size": 64, "max_length": 160},
    "ppo 2M, 2 x 64 episodes, fp32": {"kind": "ppo", "model": "laptop-2m", "batch_size": 128, "minibatches": 2},
}  # fmt: skip
QUICK = "pretrain 1M, 96 x 256, bf16"
WORDS = "the old clock on the wall said that it was time to go and so the two of them went home "


def resident(field: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (the most so far) of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def prepare() -> None:
    """The small inputs that all cases share: tokenizer, shards, a file of dialogues and one of prompts, models."""
    from tutelage.model.hub import create_model, load_tokenizer, save_model
    from tutelage.pipeline.stages import run
    from tutelage.text.chat import ensure_chat
    from tutelage.text.tokenizer import ensure_pad

    FOLDER.mkdir(parents=True, exist_ok=True)
    run("tokenizer", documents=300, vocab_size=768, out=str(FOLDER / "tokenizer"))
    run("prepare", tokenizer=str(FOLDER / "tokenizer"), documents=3000, validation=400, out=str(FOLDER / "prepare"))
    chats = [
        {"messages": [{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": WORDS * 3}]}
        for i in range(400)
    ]
    prompts = [{"prompt": f"Question {i}: {WORDS}?"} for i in range(200)]
    for name, rows in (("chats", chats), ("prompts", prompts)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (FOLDER / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (FOLDER / "judge.py").write_text(
        "def score(completions, **columns):\n    return [float(len(c)) for c in completions]\n", encoding="utf-8"
    )
    tokenizer = load_tokenizer(str(FOLDER / "tokenizer"))
    ensure_pad(tokenizer)
    ensure_chat(tokenizer)
    for name in ("laptop-2m", "laptop-5m"):
        save_model(create_model(name, tokenizer, 256), tokenizer, FOLDER / name)


def keys(case: dict[str, Any]) -> dict[str, Any]:
    """The stage's keys."""
    out = {k: v for k, v in case.items() if k not in ("kind", "model")} | {"save_every": 0}
    out.setdefault("precision", "fp32")
    if case["kind"] == "pretrain":
        data = {"data": str(FOLDER / "prepare"), "tokenizer": str(FOLDER / "tokenizer")}
        return out | data | {"model": f"preset:{case['model']}", "steps": 2, "eval_every": 0}
    out["model"] = str(FOLDER / case["model"])
    if case["kind"] == "sft":
        return out | {"data": str(FOLDER / "chats.jsonl"), "steps": 2, "eval_every": 0}
    reward = f"{FOLDER / 'judge.py'}:score"
    return out | {"data": str(FOLDER / "prompts.jsonl"), "reward": reward, "updates": 2, "max_tokens": 24}


def measure(case: dict[str, Any]) -> dict[str, float]:
    """In a process of its own: the peak above the imports. A tiny step first shows what the libraries take for
    themselves at their first use (threads' stacks, kernels' code)."""
    import tempfile

    import torch

    from tutelage.pipeline.stages import config_class, run

    config_class(case["kind"])
    from tutelage.plan import works  # noqa: F401

    imports = resident("VmRSS")
    layer = torch.nn.Linear(64, 64)
    layer(torch.ones(8, 64)).sum().backward()
    torch.optim.AdamW(layer.parameters(), fused=True).step()
    first = resident("VmRSS")
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        run(case["kind"], out=f"{folder}/run", **keys(case))
    return {"imports": imports, "first_use": first - imports, "peak": resident("VmHWM") - imports}


def predict(case: dict[str, Any]) -> dict[str, Any]:
    """The plan of the same stage on this machine."""
    from tutelage.core.config import build
    from tutelage.pipeline.planning import PlanConfig, plan_steps
    from tutelage.pipeline.recipe import Step

    own: dict[str, Any] = {}
    if case["kind"] != "pretrain":
        from tutelage.model.hub import load_tokenizer
        from tutelage.pipeline.stages import config_class
        from tutelage.stages.sft import encode_rows
        from tutelage.text.chat import encode_prompt

        tokenizer = load_tokenizer(str(FOLDER / case["model"]))
        config_class(case["kind"])
        if case["kind"] == "sft":
            rows = [json.loads(line) for line in (FOLDER / "chats.jsonl").open(encoding="utf-8")]
            own["row_tokens"] = max(len(row["input_ids"]) for row in encode_rows(rows, tokenizer, case["max_length"]))
        else:
            rows = [json.loads(line) for line in (FOLDER / "prompts.jsonl").open(encoding="utf-8")]
            asked = ([{"role": "user", "content": row["prompt"]}] for row in rows)
            own["prompt_tokens"] = max(len(encode_prompt(tokenizer, turns)) for turns in asked)
    plan = plan_steps([Step(case["kind"], case["kind"], keys(case))], build(PlanConfig, own))
    found = plan.stages[0].as_json()
    return {k: found[k] for k in ("memory", "phase", "phases", "total_bytes", "parameters", "length")}


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1].startswith("{"):
        job = json.loads(sys.argv[1])
        print(json.dumps({"measure": measure, "predict": predict}[job["do"]](job["case"])))
        return
    quick = "--quick" in sys.argv
    prepare()
    rows = {}
    for name, case in CASES.items():
        if quick and name != QUICK:
            continue
        jobs = ({"do": do, "case": case} for do in ("measure", "predict"))
        measured, plan = (run_side(sys.executable, Path(__file__), job) for job in jobs)
        off = plan["total_bytes"] / measured["peak"] - 1
        rows[name] = {**measured, "plan": plan, "off": off, "met": abs(off) <= 0.1}
        parts = "  ".join(f"{k} {v / 1e6:.0f}" for k, v in plan["memory"].items())
        print(
            f"{name}: measured {measured['peak'] / 1e6:.0f} MB (first use {measured['first_use'] / 1e6:.0f}), planned "
            f"{plan['total_bytes'] / 1e6:.0f} MB in {plan['phase']} ({off:+.1%}) = {parts}", flush=True,
        )  # fmt: skip
    save("plan_memory", {"machine": machine(), "bar": 0.1, "cases": rows}, quick)


if __name__ == "__main__":
    main()
