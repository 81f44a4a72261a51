"""Do chains of thought help a model of a million parameters that was taught them? Minutes on one core.

    TUTELAGE_DATA=... python benchmarks/reasoning_taught.py [--seed 0] [--quick]

A model from scratch reads made-up coin-flip and last-letter questions in documents of three, all answered at once or
all with a chain of thought, half and half. It is then asked the real files' questions (their names are in what it read,
none of the questions themselves), with two demonstrations before each: directly, by chain, and by a vote over sampled
chains with its curve. So both ways of answering were practised alike, and demonstrations alone say which is wanted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import common

import tutelage
from tutelage.icl.reasoning import Problem, ReasonSettings, read_problems, reason
from tutelage.icl.reasoning.prompts import demonstrated
from tutelage.pipeline.stages import launch

OUT = common.WORK / "reasoning_taught"
FILES = {"coin flip": "coin_flip", "last letters": "last_letters"}


def coin_flip(names: list[str], rng: np.random.Generator) -> Problem:
    """A question in the words of the real file, with a chain that follows the coin."""
    heads, asked, steps = True, [], []
    for name in names:
        flips = rng.random() < 0.5
        heads ^= flips
        asked.append(f"{name} {'flips' if flips else 'does not flip'} the coin.")
        steps.append(f"{name} {'flips' if flips else 'does not'}: {'heads' if heads else 'tails'}.")
    moves = " ".join(asked)
    question = f'A coin is heads up. {moves} Is the coin still heads up? Note that "flip" here means "reverse".'
    return Problem(question, "yes" if heads else "no", (), "yes_no", " ".join(steps))


def last_letters(names: list[str], rng: np.random.Generator) -> Problem:
    """A question in the words of the real file, with a chain that goes name by name."""
    steps = " ".join(f'The last letter of "{name}" is "{name[-1]}".' for name in names)
    question = f'Take the last letters of each words in "{" ".join(names)}" and concatenate them.'
    return Problem(question, "".join(name[-1] for name in names), (), "text", steps)


MAKERS = {"coin flip": coin_flip, "last letters": last_letters}


def write_text(path: Path, names: list[str], forbidden: set[str], count: int, rng: np.random.Generator) -> None:
    """Documents of three questions of one task, answered in one way."""
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            make = MAKERS[str(rng.choice(list(MAKERS)))]
            chain = bool(rng.random() < 0.5)
            shown: list[Problem] = []
            while len(shown) < 3:
                problem = make([str(name) for name in rng.choice(names, 4, replace=False)], rng)
                if problem.question not in forbidden:
                    shown.append(problem)
            text = "\n\n".join(f"Q: {p.text}\nA: {demonstrated(p, chain)}" for p in shown)
            file.write(json.dumps({"text": text}) + "\n")


def teach(names: list[str], forbidden: set[str], documents: int, steps: int, seed: int) -> Path:
    """The run directory of the model."""
    shutil.rmtree(OUT, ignore_errors=True)  # always taught anew: the text depends on the arguments
    OUT.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    write_text(OUT / "train.jsonl", names, forbidden, documents, rng)
    write_text(OUT / "held.jsonl", names, forbidden, 200, rng)
    text = {"data": str(OUT / "train.jsonl")}
    launch("tokenizer", {**text, "vocab_size": 1024, "out": str(OUT / "tokenizer")})
    tokenizer = {"tokenizer": str(OUT / "tokenizer")}
    launch("prepare", {**text, **tokenizer, "held_out": str(OUT / "held.jsonl"), "out": str(OUT / "shards")})
    launch("pretrain", {
        **tokenizer, "data": str(OUT / "shards"), "model": "preset:laptop-1m", "steps": steps, "batch_size": 16,
        "block_size": 320, "max_length": 1024, "eval_every": 200, "save_every": 0, "seed": seed,
        "out": str(OUT / "pretrain"),
    })  # fmt: skip
    return OUT / "pretrain"


def ask(engine: Any, name: str, problems: list[Problem], names: list[str], paths: int, seed: int) -> dict[str, Any]:
    """Accuracies of three methods on one real file's problems."""
    rng = np.random.default_rng(seed + 1)
    shown = [MAKERS[name]([str(n) for n in rng.choice(names, 4, replace=False)], rng) for _ in range(2)]
    found: dict[str, Any] = {}
    for method in ("few_shot", "few_shot_cot", "self_consistency"):
        settings = ReasonSettings(exemplars=shown, shots=2, max_tokens=96, paths=paths, temperature=1.0)
        result = reason(method, engine, problems, settings, seed)
        found[method] = result.summary()
        low, high = result.interval
        print(f"{name:14}{method:18}{100 * result.accuracy:6.1f} [{100 * low:.1f}, {100 * high:.1f}]"
              f"  {result.generated_tokens} tokens, {result.seconds:.1f} s", flush=True)  # fmt: skip
    at = [p for p in result.curve if p.paths in (1, 2, 3, 5, 10, 20, 40)]
    print(f"{name:14}{'by paths':18}", ", ".join(f"{p.paths}: {100 * p.accuracy:.1f}" for p in at))
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=12000)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--problems", type=int, default=200, help="the first so many of each file")
    parser.add_argument("--paths", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="small: does everything run")
    args = parser.parse_args(argv)
    if args.quick:
        args.documents, args.steps, args.problems, args.paths = 400, 20, 8, 4
    if "TUTELAGE_DATA" not in os.environ:
        raise SystemExit("TUTELAGE_DATA must name a folder with reason/ in it")
    folder = Path(os.environ["TUTELAGE_DATA"]) / "reason" / "zero_shot_cot"
    real = {name: read_problems(folder / file) for name, file in FILES.items()}
    words = (word for p in real["last letters"] for word in p.question.split('"')[1].split())
    names = sorted(set(words))
    forbidden = {p.question for problems in real.values() for p in problems}
    engine = tutelage.load(teach(names, forbidden, args.documents, args.steps, args.seed))
    rows = {n: ask(engine, n, real[n][: args.problems], names, args.paths, args.seed) for n in FILES}
    facts = {key: getattr(args, key) for key in ("documents", "steps", "problems", "paths", "seed")}
    row = {**facts, "names": len(names), "rows": rows, "machine": common.machine()}
    common.save(f"reasoning_taught_seed{args.seed}", row, args.quick)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
