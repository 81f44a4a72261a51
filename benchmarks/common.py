"""What the benchmarks share: machine speed, the peer's own environment, results on disk, one table."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
WORK = ROOT / "build" / "bench"
"""Scratch models and data (git-ignored); removing it costs only time."""
PEERS = {
    "trl": ("torch==2.13.0", "trl==1.12.0", "transformers==5.24.0"),
    "trl_now": ("torch==2.13.0", "trl==1.16.0", "transformers==5.24.0"),
    "lmeval": ("torch==2.13.0", "lm-eval[hf]==0.4.13", "transformers==5.24.0"),
}
"""Environment .venv-bench-NAME and what is installed in it."""


def gemm_gflops(size: int = 1024, seconds: float = 1.0) -> float:
    """Median fp32 GFLOP/s of `size`-cubed matrix products over about `seconds`: how fast the machine is just now."""
    import torch

    x, y = torch.randn(size, size), torch.randn(size, size)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        began = time.perf_counter()
        x @ y
        times.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(times[2:]) / 1e9


def machine() -> dict[str, Any]:
    """Processor, threads and versions, for the result file."""
    import torch
    import transformers

    import tutelage

    model = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "processor": model or platform.processor(),
        "threads": torch.get_num_threads(),
        "gemm_fp32_gflops": round(gemm_gflops(), 1),
        "python": platform.python_version(),
        "tutelage": tutelage.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": commit.stdout.strip(),
    }


def peer_python(name: str = "trl") -> Path:
    """Python of a peer's own environment, made on the first call (its pins would fight with ours)."""
    folder, packages = ROOT / f".venv-bench-{name}", PEERS[name]
    python = folder / "bin" / "python"
    ready = folder / ".installed"
    wanted = " ".join(packages)
    if not ready.exists() or ready.read_text(encoding="utf-8") != wanted:
        print(f"making {folder.name} with {wanted}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), *packages], check=True)
        ready.write_text(wanted, encoding="utf-8")
    return python


def run_side(python: Path | str, script: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Run one side of a comparison in a process of its own; `job` is its JSON argument, the last line its answer.

    Both sides are started alike, one at a time. RuntimeError with the end of its output when it fails.
    """
    env = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    env.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    command = [str(python), str(script), json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{script.name} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def trials(choices: Sequence[dict[str, Any]], unit: str, speed: Callable[[dict[str, Any]], float]) -> list[Any]:
    """What each choice of settings reaches, quickest first, under the key `unit`: first all without torch.compile, then
    with it the quickest in every precision. "compiled" joins the settings."""
    found: list[dict[str, Any]] = []

    def attempt(choice: dict[str, Any]) -> None:
        found.append({**choice, unit: speed(choice)})

    for choice in choices:
        attempt({**choice, "compiled": False})
    quickest = max(found, key=lambda f: f[unit])
    for precision in dict.fromkeys(choice["precision"] for choice in choices):
        attempt({**{k: quickest[k] for k in choices[0]}, "precision": precision, "compiled": True})
    return sorted(found, key=lambda f: -f[unit])


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of its 95% interval (Student's t); infinite for one value."""
    n = len(values)
    if n < 2:
        return float(values[0]), math.inf
    quantile = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}.get(n, 2.0)
    return statistics.mean(values), quantile * statistics.stdev(values) / math.sqrt(n)


def save(name: str, row: dict[str, Any], quick: bool) -> Path | None:
    """Write results/NAME.json; a quick run proves only that the benchmark works, so it writes nothing."""
    if quick:
        return None
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    return path


def verdict(row: dict[str, Any]) -> str:
    """One line of what a benchmark found."""
    return (
        f"{row['name']}: {row['ours']:.4g} against {row['peer']:.4g} {row['unit']}"
        f"  ratio {row['ratio']:.2f} (bar {row['bar']}): {'met' if row['met'] else 'NOT met'}"
        f"  [GEMM {row['machine']['gemm_fp32_gflops']:.0f} GFLOP/s]"
    )
