"""Loss curves of 2 and 4 processes (DDP, FSDP2; gloo) beside one process's, for every stage that shares its work.

    python benchmarks/world_sizes.py [--sizes 2,4] [--stages pretrain,sft,reward,ppo,grpo,dpo] [--kill] [--out DIR]

Prints the largest relative difference of any logged number. --kill: rank 1 of a pretraining is killed (SIGKILL) in the
middle, torchrun restarts both from the checkpoint, and the curve is held against the unbroken run's.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TIMES = {"seconds", "tokens_per_second", "episodes_per_second"}
Words = list[str]


def torchrun(size: int, words: Words, restarts: int = 0) -> list[str]:
    """The command line of `tutelage WORDS` in `size` processes."""
    if size == 1:
        return [sys.executable, "-m", "tutelage", *words]
    start = ["torch.distributed.run", "--standalone", f"--nproc-per-node={size}", f"--max-restarts={restarts}"]
    return [sys.executable, "-m", *start, "-m", "tutelage", *words]


def run(size: int, words: Words) -> None:
    """Run to the end; its output is shown where it fails."""
    done = subprocess.run(torchrun(size, words), capture_output=True, text=True, env=quiet())
    if done.returncode:
        sys.exit(f"{' '.join(words)} on {size}: {done.stdout[-2000:]}{done.stderr[-4000:]}")


def quiet() -> dict[str, str]:
    """The environment with one thread a process."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def gap(one: Path, other: Path) -> float:
    """Largest relative difference of any number that two runs logged (their keys and steps must agree)."""
    ours, theirs = ([json.loads(x) for x in (p / "metrics.jsonl").read_text().splitlines()] for p in (one, other))
    if [r.keys() for r in ours] != [r.keys() for r in theirs]:
        sys.exit(f"{one} and {other}: the rows differ in their keys or number")
    pairs = [(a[k], b[k]) for a, b in zip(ours, theirs) for k in a if k not in TIMES and isinstance(a[k], int | float)]
    return max(abs(a - b) / (1e-3 + abs(a)) for a, b in pairs)


def chain(out: Path) -> None:
    """The small runs that the others start from."""
    base = f"{out}/base"
    run(1, ["tokenizer", "documents=200", "vocab_size=400", f"out={base}/tokenizer"])
    run(1, ["prepare", f"tokenizer={base}/tokenizer", "documents=300", "validation=40", f"out={base}/prepare"])
    run(1, [*pretrain(out), "steps=10", f"out={base}/pretrain"])
    run(1, ["sft", f"model={base}/pretrain", "rows=200", "held_rows=20", "steps=8", "batch_size=16", f"out={base}/sft"])
    run(1, ["rank", f"model={base}/sft", "prompts=24", "held_out=12", "max_tokens=8", f"out={base}/rank"])
    run(1, ["reward", f"model={base}/sft", f"data={base}/rank", "steps=3", "batch_size=8", f"out={base}/reward"])


def pretrain(out: Path) -> Words:
    """Words of a small pretraining."""
    base = f"{out}/base"
    return ["pretrain", f"tokenizer={base}/tokenizer", f"data={base}/prepare", "model=preset:laptop-0.3m",
            "batch_size=8", "block_size=32", "eval_every=5", "save_every=5", "precision=fp32"]  # fmt: skip


def stages(out: Path) -> dict[str, Words]:
    """Words of every stage that is compared, by name; AdamW unless the name says Muon."""
    base, common = f"{out}/base", ["precision=fp32", "save_every=0"]
    text = [f"ptx_data={base}/prepare", "ptx_batch=4", "ptx_block=32"]
    rl = [*common, f"model={base}/sft", f"reward={base}/reward", *text, "prompts=40", "updates=4", "batch_size=16"]
    sft = ["sft", *common, f"model={base}/pretrain", "rows=100", "held_rows=20", "steps=10", "batch_size=9"]
    return {
        "pretrain": [*pretrain(out), "steps=20", "optimizer.name=adamw"],
        "pretrain-muon": [*pretrain(out), "steps=20"],
        "sft": [*sft, *text, "optimizer.name=adamw"],
        "sft-muon": sft,
        "reward": ["reward", *common, f"model={base}/sft", f"data={base}/rank", "steps=8", "batch_size=6"],
        "ppo": ["ppo", *rl, "minibatches=2", "max_tokens=6", "kl_target=0.1"],
        "grpo": ["grpo", *rl, "minibatches=2", "max_tokens=6", "group_size=4"],
        "dpo": ["dpo", *common, f"model={base}/sft", f"data={base}/rank", "updates=8", "batch_size=4",
                "eval_prompts=0"],
    }  # fmt: skip


def killed(out: Path) -> float:
    """The gap between a pretraining on two processes of which one is killed on the way, and the unbroken one."""
    words = [*pretrain(out), "steps=60"]
    run(1, [*words, f"out={out}/unbroken"])
    job = subprocess.Popen(torchrun(2, [*words, f"out={out}/killed"], restarts=2), env=quiet())
    while not list((out / "killed/checkpoints").glob("step-*")):
        if job.poll() is not None:
            sys.exit(f"ended with {job.returncode} before its first checkpoint")
        time.sleep(0.02)
    victim = next(pid for pid in children(job.pid) if b"RANK=1" in environment(pid))
    os.kill(victim, signal.SIGKILL)
    print(f"killed rank 1 after {sorted(p.name for p in (out / 'killed/checkpoints').glob('step-*'))}", flush=True)
    if job.wait():
        sys.exit(f"torchrun ended with {job.returncode}")
    return gap(out / "unbroken", out / "killed")


def children(parent: int) -> list[int]:
    """Process ids of a process's children (Linux)."""
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def environment(pid: int) -> list[bytes]:
    """What a process was started with (Linux)."""
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="2,4")
    parser.add_argument("--stages", default="")
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/world_sizes"))
    given = parser.parse_args()
    chain(given.out)
    if given.kill:
        print(f"pretrain, one of two processes killed: {killed(given.out):.1e}")
        return
    chosen = [name for name in given.stages.split(",") if name]
    print(f"{'stage':16}{'processes':>10}{'parallel':>10}{'largest relative difference':>30}")
    for name, words in stages(given.out).items():
        if chosen and name not in chosen:
            continue
        alone = given.out / f"{name}-1"
        run(1, [*words, f"out={alone}"])
        for size in map(int, given.sizes.split(",")):
            for parallel in ("ddp", "fsdp"):
                both = given.out / f"{name}-{size}-{parallel}"
                run(size, [*words, f"parallel={parallel}", f"out={both}"])
                print(f"{name:16}{size:>10}{parallel:>10}{gap(alone, both):>30.1e}", flush=True)


if __name__ == "__main__":
    main()
