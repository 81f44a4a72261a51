"""Device, dtype, threads and named random streams."""

from __future__ import annotations

import hashlib
import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def stream_seed(seed: int, *names: Any) -> int:
    """A 63-bit seed for one named stream: `stream_seed(0, "rollout", 12)`. No stream reads the global generator."""
    text = ":".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *names: Any) -> torch.Generator:
    """A torch generator on the stream's own seed."""
    import torch

    return torch.Generator().manual_seed(stream_seed(seed, *names))


def cpu_has_bf16() -> bool:
    """True where the CPU multiplies bf16 natively (AVX512-BF16 or AMX): elsewhere bf16 is emulated and slower."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def autocast(precision: str, device: str = "cpu") -> AbstractContextManager[Any]:
    """`precision`: "fp32", "bf16" or "auto" (bf16 where the hardware has it)."""
    import torch

    if precision == "auto":
        precision = "bf16" if device != "cpu" or cpu_has_bf16() else "fp32"
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device, dtype=torch.bfloat16)


def set_threads() -> int:
    """Use the cores there are, unless OMP_NUM_THREADS says otherwise."""
    import torch

    threads = int(os.environ.get("OMP_NUM_THREADS", "0")) or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    return threads
