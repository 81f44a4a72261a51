"""What accelerators can do by their makers' data sheets, and what this machine's processor does by measurement."""

from __future__ import annotations

import difflib
import os
import re
import time
from dataclasses import dataclass

from tutelage.core.errors import ConfigError
from tutelage.core.lineage import cpu_name
from tutelage.core.remember import remembered

GB = 1e9
GIB = 2.0**30


@dataclass(frozen=True)
class Hardware:
    """One kind of device. `peak`: dense FLOP/s in bf16 (cpu: fp32, measured); `memory`: bytes; `bandwidth`: bytes/s of
    its memory, 0 where unknown; `source`: where the numbers are from."""

    name: str
    peak: float
    memory: float
    bandwidth: float
    source: str

    @property
    def is_cpu(self) -> bool:
        return self.name == "cpu"


TABLE = {
    h.name: h
    for h in (
        Hardware("H100", 989.4e12, 80 * GB, 3.35e12, "NVIDIA H100 data sheet, SXM5 (1,979 TFLOPS with sparsity)"),
        Hardware("H200", 989.4e12, 141 * GB, 4.8e12, "NVIDIA H200 data sheet, SXM (1,979 TFLOPS with sparsity)"),
        Hardware("A100-40", 312e12, 40 * GB, 1.555e12, "NVIDIA A100 data sheet, SXM4 40 GB"),
        Hardware("A100-80", 312e12, 80 * GB, 2.039e12, "NVIDIA A100 data sheet, SXM4 80 GB"),
        Hardware("B200", 2250e12, 180 * GB, 8.0e12, "NVIDIA DGX B200 data sheet (8 GPUs, 1,440 GB)"),
        Hardware("RTX4090", 165.2e12, 24 * GB, 1.008e12, "NVIDIA Ada architecture paper, app. A (dense bf16)"),
    )
}  # fmt: skip
"""Peaks are those of dense matrix products: data sheets print twice as much "with sparsity"."""
ALIASES = {"A100": "A100-80", "4090": "RTX4090", "RTX-4090": "RTX4090"}
RESERVE = 0.08
"""Share of a GPU's memory that is not ours: the CUDA context, NCCL's buffers, the allocator's gaps."""


def parse_gpus(text: str) -> tuple[int, Hardware]:
    """("64xH100" | "H100" | "cpu") -> (how many, which). ConfigError names the nearest known device."""
    match = re.fullmatch(r"(?:(\d+)\s*[x*]\s*)?([A-Za-z][\w-]*|4090)", text.strip())
    if not match:
        raise ConfigError(f"gpus={text!r}: expected NUMBERxNAME such as 64xH100, or cpu; known: {', '.join(TABLE)}")
    count, name = int(match[1] or 1), match[2]
    if count < 1:
        raise ConfigError(f"gpus={text!r}: expected at least one device")
    if name.lower() == "cpu":
        return count, this_cpu()
    known = {key.lower(): h for key, h in TABLE.items()} | {key.lower(): TABLE[h] for key, h in ALIASES.items()}
    if name.lower() not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"did you mean {known[near[0]].name!r}? " if near else ""
        raise ConfigError(f"gpus={text!r}: no such device; {hint}known: cpu, {', '.join(TABLE)}")
    return count, known[name.lower()]


def this_cpu() -> Hardware:
    """This machine: its fp32 matrix products timed (first verdict kept, as for bf16), and its physical memory."""
    import torch

    key = f"{cpu_name()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    peak = remembered("gemm", key, _gemm_flops, float)
    source = f"measured: fp32 1024-cubed product, {torch.get_num_threads()} threads"
    return Hardware("cpu", peak, _memory(), 0.0, source)


def _gemm_flops(size: int = 1024, seconds: float = 0.5) -> float:
    """FLOP/s of the best of the products that fit into `seconds`: a peak, so the least disturbed one counts."""
    import torch

    x, y = torch.randn(size, size), torch.randn(size, size)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        x @ y
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def _memory() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
