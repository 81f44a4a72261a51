"""Does a recipe that is killed again and again end with the same numbers as one that never was?

    python benchmarks/kill_campaign.py --kills 20 --recipe recipes/demo.toml --out runs/soak/kills
    python benchmarks/kill_campaign.py --kills 50 --recipe benchmarks/endurance.toml --out runs/soak/kills-everywhere
    python benchmarks/kill_campaign.py --kills 5 --recipe recipes/smoke.toml --out runs/kills pretrain.save_every=4

The recipe runs unbroken into OUT/whole, then into OUT/killed, where its whole process group gets SIGKILL at random
moments and the same command starts it again. One half of the moments is spread over the time that the unbroken run
took, the other over its stages; these wait, from their moment on, for something half-written (a checkpoint, model,
tokenizer or shards being saved) and strike within milliseconds. Then everything is compared that a run is asked for:
summaries, metrics, samples, answers, rankings, and the hash of every model, tokenizer and shard. Times and speeds are
left out. OUT/result.json has all of it; the verdict names the first difference. Words key=value at the end go to both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import common

TIMES = (
    "seconds", "tokens_per_second", "episodes_per_second", "asking_seconds", "training_seconds", "status",
)  # fmt: skip
"""Keys that may differ: times, speeds, and whether a stage was run by the last process or kept from one before."""
HASHED = ("model/*", "tokenizer/*", "train/*", "validation/*", "loop-*/model/*")
COMPARE = "compare"
"""What a recipe does after its last stage."""
ROWS = ("*.jsonl", "loop-*/*.jsonl")


@dataclass
class Moment:
    """When to strike: so many seconds into a stage's work; `aimed`: at the next half-written thing from then on."""

    stage: str
    at: float
    aimed: bool


@dataclass
class Kill:
    """A strike: the stage, seconds since this process began it, and what was half-written just then, if anything."""

    stage: str
    after: float
    aimed: bool
    half_written: str


class Watch:
    """Looks at a pipeline's directory from outside: which stage the process started at `since` works on."""

    def __init__(self, out: Path, stages: list[str]) -> None:
        self.out, self.stages, self.since = out, stages, time.time() - 0.01
        self.seen: dict[str, float] = {}
        self.left = {name for stage in stages for name in self._written_aside(stage)}
        """What processes that were killed have left."""

    def now(self) -> tuple[str, float] | None:
        """(stage, seconds since it began), or None while nothing has begun."""
        for stage in self.stages:
            if stage not in self.seen and self._written(self.out / stage / "manifest.json"):
                self.seen[stage] = time.time()
        stage = max(self.seen, key=[*self.stages, COMPARE].index, default=None)
        last = self.stages[-1]
        # the pipeline's own summary is written after every stage, also after one that was kept
        if stage in (None, last) and self._written(self.out / "summary.json") and self._finished(last):
            stage = COMPARE
            self.seen.setdefault(stage, time.time())
        return (stage, time.time() - self.seen[stage]) if stage else None

    def _written(self, file: Path) -> bool:
        try:
            return file.stat().st_mtime >= self.since
        except OSError:
            return False

    def _finished(self, stage: str) -> bool:
        try:
            return json.loads((self.out / stage / "manifest.json").read_text(encoding="utf-8"))["status"] == "finished"
        except OSError:
            return False

    def half_written(self, stage: str) -> str:
        """What is being written aside in the stage's directory, or ""."""
        return next((name for name in self._written_aside(stage) if name not in self.left), "")

    def _written_aside(self, stage: str) -> Iterator[str]:
        for place in (self.out / stage, self.out / stage / "checkpoints"):
            try:
                names = [entry.name for entry in os.scandir(place)]
            except OSError:
                continue
            for name in names:
                if name.startswith(".") and not name.startswith((".lock", ".manifest", ".config")):
                    yield f"{stage}: {name}"


def start(line: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Run it in a process group of its own, its output into `log`."""
    with log.open("ab") as file:
        return subprocess.Popen(line, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, cwd=common.ROOT)


def unbroken(watch: Watch, line: list[str], log: Path) -> dict[str, float]:
    """Run to the end; returns the seconds of each stage as seen from outside."""
    process, seconds = start(line, log), {}  # type: ignore[var-annotated]
    while process.poll() is None:
        if now := watch.now():
            seconds[now[0]] = now[1]
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"the unbroken run failed ({process.returncode}); see {log}")
    return seconds


def moments(seconds: dict[str, float], kills: int, rng: random.Random) -> list[Moment]:
    """`kills` moments in the chain's order: one half spread evenly over the time, the other, aimed, over the stages."""
    order, out = list(seconds), []
    for k in range(0, kills, 2):
        at = (k + 2 * rng.random()) / kills * sum(seconds.values())
        for stage, length in seconds.items():
            if at <= length or stage == order[-1]:
                out.append(Moment(stage, at, aimed=False))
                break
            at -= length
    makers = [stage for stage in order if stage != COMPARE]
    for k in range(1, kills, 2):
        stage = makers[k * len(makers) // kills]
        out.append(Moment(stage, rng.random() * seconds[stage], aimed=True))
    return sorted(out, key=lambda moment: (order.index(moment.stage), moment.at))


def ambush(
    process: subprocess.Popen[bytes], watch: Watch, moment: Moment, done: float, rng: random.Random
) -> Kill | None:
    """Kill the group when the moment comes; None when the process ended before. `done`: seconds of the stage's work
    that earlier processes had reached."""
    order = [*watch.stages, COMPARE]
    while process.poll() is None:
        now = watch.now()
        late = now is not None and order.index(now[0]) > order.index(moment.stage)
        if now and (late or (now[0] == moment.stage and now[1] >= moment.at - done)):
            found = watch.half_written(now[0])
            if found or not moment.aimed or now[0] == COMPARE:
                time.sleep(rng.random() * 0.02 if found else 0.0)
                found = found or watch.half_written(now[0])
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    return Kill(now[0], round(now[1], 3), moment.aimed, found)
        time.sleep(0.001)
    return None


def campaign(out: Path, stages: list[str], plan: list[Moment], line: list[str], log: Path, seed: int) -> list[Kill]:
    """Start, kill and start again as planned, then let the run end by itself."""
    rng, kills = random.Random(f"strikes:{seed}"), []  # type: ignore[var-annotated]
    reached: dict[str, float] = {}
    while True:
        process = start(line, log)
        kill = None
        if plan:
            moment = plan[0]
            kill = ambush(process, Watch(out, stages), moment, reached.get(moment.stage, 0.0), rng)
        if kill is None:
            if process.wait():
                raise SystemExit(f"a resumed run failed ({process.returncode}) after {kills[-1:]}; see {log}")
            return kills
        reached[moment.stage] = moment.at
        plan.pop(0)
        kills.append(kill)
        print(f"kill {len(kills)}: {kill.stage} after {kill.after:.2f} s  {kill.half_written}", flush=True)


def bare(value: Any) -> Any:
    """A JSON value without times and speeds."""
    if isinstance(value, dict):
        return {k: bare(v) for k, v in value.items() if k not in TIMES}
    return [bare(v) for v in value] if isinstance(value, list) else value


def facts(out: Path, stages: list[str]) -> Iterator[tuple[str, Any]]:
    """(name, value) of everything that has to be equal, in the chain's order."""
    for stage in stages:
        folder = out / stage
        for pattern in HASHED:
            for file in sorted(folder.glob(pattern)):
                yield f"{stage}/{file.relative_to(folder)}", hashlib.sha256(file.read_bytes()).hexdigest()
        for pattern in ROWS:
            for file in sorted(folder.glob(pattern)):
                lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
                for number, row in enumerate(lines, 1):
                    yield f"{stage}/{file.relative_to(folder)}:{number}", bare(json.loads(row))
        yield f"{stage}/summary.json", bare(json.loads((folder / "summary.json").read_text(encoding="utf-8")))
        yield f"{stage} left half-written", sorted(p.name for p in folder.rglob(".*") if p.name != ".lock")
        status = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        yield f"{stage}/manifest.json", [status["status"], status["fingerprint"], status.get("warnings", [])]
    yield "summary.json", bare(json.loads((out / "summary.json").read_text(encoding="utf-8")))


def differences(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """What differs, each with both values."""
    out = []
    for name in [*one, *(n for n in two if n not in one)]:
        if json.dumps(one.get(name)) != json.dumps(two.get(name)):  # as text: NaN equals NaN
            values = [str(made.get(name, "absent"))[:300] for made in (one, two)]
            out.append(f"{name}: {values[0]} unbroken, {values[1]} killed")
    return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--recipe", default="recipes/demo.toml")
    parser.add_argument("--out", default="runs/soak/kills")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("words", nargs="*", help="key=value for the recipe")
    args = parser.parse_args(argv)
    out, recipe = Path(args.out).resolve(), Path(args.recipe).resolve()
    stages = [name for name, table in tomllib.loads(recipe.read_text()).items() if isinstance(table, dict)]
    stages = [name for name in stages if name != COMPARE]
    for old in ("whole", "killed"):
        shutil.rmtree(out / old, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    log = out / "log.txt"
    log.unlink(missing_ok=True)

    def line(name: str) -> list[str]:
        return [sys.executable, "-m", "tutelage.cli", "run", str(recipe), f"out={out / name}", *args.words]

    began = time.time()
    seconds = unbroken(Watch(out / "whole", stages), line("whole"), log)
    whole = time.time() - began
    if COMPARE in seconds:  # it keeps nothing, so few of the kills are for it
        seconds[COMPARE] = min(seconds[COMPARE], statistics.median(seconds.values()))
    print("unbroken: " + "  ".join(f"{name} {s:.1f} s" for name, s in seconds.items()), flush=True)
    plan = moments(seconds, args.kills, random.Random(f"moments:{args.seed}"))
    began = time.time()
    kills = campaign(out / "killed", stages, plan, line("killed"), log, args.seed)
    one, two = (dict(facts(out / name, stages)) for name in ("whole", "killed"))
    # the lineage names directories, which differ; what is compared is what was made
    found = differences(one, two)
    row = {
        "name": "kill campaign", "recipe": args.recipe, "words": args.words, "seed": args.seed,
        "equal": not found, "compared": len(one), "differences": found, "planned": args.kills,
        "kills": [asdict(k) for k in kills], "seconds_unbroken": round(whole, 1), "stages": seconds,
        "seconds_killed": round(time.time() - began, 1), "machine": common.machine(),
    }  # fmt: skip
    (out / "result.json").write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    aimed = sum(bool(k.half_written) for k in kills)
    by_stage = Counter(kill.stage for kill in kills)
    print("kills: " + "  ".join(f"{name} {by_stage[name]}" for name in seconds if by_stage[name]))
    print(f"{len(kills)} kills ({aimed} with something half-written), {len(one)} numbers and files compared")
    print(f"NOT equal: {len(found)} differences; the first: {found[0]}" if found else "equal: the same final numbers")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
