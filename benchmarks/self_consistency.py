"""Self-consistency with 40 paths against transformers.generate with 40 return sequences: same prompts, same lengths.

    TUTELAGE_DATA=... python benchmarks/self_consistency.py            # about 10 minutes on two cores
    TUTELAGE_DATA=... python benchmarks/self_consistency.py --quick

Questions of GSM8K behind the eight demonstrations of icl/reasoning, 128 new tokens a path at temperature 0.7. The model
is a random Qwen3 of 5.3 million parameters with a context of 4,096, its tokenizer trained on GSM8K; nothing ends a path
early. Our side is the whole method (prompts, samples, answers, votes, the curve); the peer's is generate, decoding and
a regular expression. transformers runs at its quickest number of questions a batch (1, 2 or 4), tried on a part first.
Every side runs in a process of its own, sides take turns, and what is compared are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import common

HERE = Path(__file__).resolve().parent / "peers"
MODEL = common.WORK / "self_consistency" / "model"
BAR = 3.0
BATCHES = (1, 2, 4)


def data() -> Path:
    """GSM8K's folder."""
    named = os.environ.get("TUTELAGE_DATA")
    if not named or not (Path(named) / "reason" / "gsm8k").is_dir():
        raise SystemExit("TUTELAGE_DATA must name a folder with reason/gsm8k in it")
    return Path(named) / "reason" / "gsm8k"


def make_model() -> str:
    """The model's folder, made on the first call."""
    if not (MODEL / "config.json").exists():
        import torch
        from transformers import AutoModelForCausalLM

        from tutelage.icl.reasoning import read_problems
        from tutelage.model.presets import build_config
        from tutelage.text.tokenizer import train_tokenizer

        problems = read_problems(data(), 2000)
        texts = [f"Q: {p.text}\nA: {p.rationale} The answer is {p.answer}." for p in problems]
        tokenizer = train_tokenizer(texts, 2048)
        torch.manual_seed(0)
        config = build_config("laptop-5m", len(tokenizer), 4096)
        tokenizer.save_pretrained(MODEL)
        AutoModelForCausalLM.from_config(config).save_pretrained(MODEL)
    return str(MODEL)


def prompts(count: int) -> Path:
    """A file of the first ``count`` questions' prompts as token ids."""
    from transformers import AutoTokenizer

    from tutelage.icl.reasoning import read_problems
    from tutelage.icl.reasoning.exemplars import NUMBER
    from tutelage.icl.reasoning.prompts import ask

    tokenizer = AutoTokenizer.from_pretrained(make_model())
    ids = [tokenizer(ask(NUMBER, p, False))["input_ids"] for p in read_problems(data(), count)]
    path = common.WORK / "self_consistency" / f"prompts-{count}.json"
    path.write_text(json.dumps(ids), encoding="utf-8")
    return path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--paths", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of a path")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small and once: does everything run")
    args = parser.parse_args(argv)
    questions, paths, tokens, rounds = (args.questions, args.paths, args.tokens, args.rounds)
    if args.quick:
        questions, paths, tokens, rounds = 2, 8, 16, 1
    job: dict[str, Any] = {
        "model": make_model(), "data": str(data()), "prompts": str(prompts(questions)), "questions": questions,
        "paths": paths, "tokens": tokens,
    }  # fmt: skip

    def ours() -> dict[str, Any]:
        return common.run_side(sys.executable, HERE / "ours_reason.py", job)

    def hf(**more: Any) -> dict[str, Any]:
        return common.run_side(sys.executable, HERE / "hf_reason.py", {**job, **more})

    part = min(4, questions)
    tried = {batch: hf(questions=part, batch=batch)["seconds"] for batch in BATCHES if batch <= part}
    best = min(tried, key=lambda batch: tried[batch])
    mine, theirs = [], []
    for _ in range(rounds):
        mine.append(ours())
        theirs.append(hf(batch=best))
    assert mine[0]["tokens"] == theirs[0]["tokens"] == questions * paths * tokens, (mine[0], theirs[0])
    a = statistics.median(m["seconds"] for m in mine)
    b = statistics.median(t["seconds"] for t in theirs)
    row = {
        "name": "self_consistency", "ours": a, "peer": b, "unit": "s", "ratio": b / a, "bar": BAR, "met": b / a >= BAR,
        "questions": questions, "paths": paths, "new_tokens": tokens, "prompt_tokens": mine[0]["prompt_tokens"],
        "tokens": mine[0]["tokens"], "peer_name": "transformers", "peer_batch": best, "peer_tried": tried,
        "ours_all": [m["seconds"] for m in mine], "peer_all": [t["seconds"] for t in theirs],
        "machine": common.machine(),
    }  # fmt: skip
    print(common.verdict(row), flush=True)
    print(f"  prompts of {row['prompt_tokens'] / questions:.0f} tokens; transformers with {best} question(s) a batch")
    common.save("self_consistency", row, args.quick)
    return int(not args.quick and not row["met"])


if __name__ == "__main__":
    raise SystemExit(main())
