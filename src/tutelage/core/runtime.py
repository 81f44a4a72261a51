"""Device, dtype, threads and named random streams."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tutelage.core.lineage import cpu_name
from tutelage.core.remember import remembered

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


def reseed(seed: int, *names: Any) -> None:
    """Set the global generators of torch, numpy and random to the stream's own seed.

    Our own code reads named streams, but libraries (dropout, new embedding rows, a user's reward function) read the
    global ones. Set at every step, they are functions of (seed, step) alone: a resumed run has nothing to restore.
    """
    import numpy as np
    import torch

    value = stream_seed(seed, *names)
    torch.manual_seed(value)
    random.seed(value)
    np.random.seed(value % 2**32)


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Context after which the caller's global generators stand where they stood."""
    import numpy as np
    import torch

    kept = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(kept[0])
        random.setstate(kept[1])
        np.random.set_state(kept[2])


NO_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
"""Values of ONEDNN_MAX_CPU_ISA under which oneDNN multiplies no bf16, whatever the CPU could do."""


def cpu_has_bf16() -> bool:
    """True where bf16 is multiplied natively (AVX512-BF16 or AMX, and oneDNN may use them): elsewhere it is emulated
    and slower."""
    cap = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    if cap.upper() in NO_BF16:
        return False
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


@lru_cache(maxsize=1)
def cpu_prefers_bf16() -> bool:
    """True where bf16 matrix products are measurably faster: having the instruction does not say so.

    One Xeon with AVX512-BF16 ran a 1024-cube at 229 GFLOP/s in bf16 against 136 in fp32, another at 158 against 293.
    A measurement depends on what else the machine does just then, and two runs in different precisions differ: the
    first verdict on a processor (and torch version and thread count) is kept in the user's cache folder.
    """
    import torch

    if not cpu_has_bf16():
        return False
    key = f"{cpu_name()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    return remembered("bf16", key, _bf16_is_faster, bool)


def _bf16_is_faster() -> bool:
    """The best of five 256-cubes (10 ms); autocast has costs of its own, so 1.4 times is asked."""
    import torch

    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(256, 256, dtype=dtype)
        times = []
        for _ in range(6):
            began = time.perf_counter()
            for _ in range(4):
                x @ x
            times.append(time.perf_counter() - began)
        seconds[dtype] = min(times[1:])
    return seconds[torch.float32] > 1.4 * seconds[torch.bfloat16]


def resolve_precision(precision: str, device: str = "cpu") -> str:
    """"fp32" or "bf16"; "auto" is bf16 on a GPU and on a CPU that is faster with it."""
    if precision != "auto":
        return precision
    return "bf16" if device != "cpu" or cpu_prefers_bf16() else "fp32"


def autocast(precision: str, device: str = "cpu") -> AbstractContextManager[Any]:
    """`precision`: "fp32", "bf16" or "auto" (see `resolve_precision`)."""
    import torch

    if resolve_precision(precision, device) == "fp32":
        return nullcontext()
    return torch.autocast(device, dtype=torch.bfloat16)


_ARENA_MAX, _MMAP_THRESHOLD, _TOP_PAD, _TRIM_THRESHOLD = -8, -3, -2, -1  # mallopt's names for its parameters


def keep_memory() -> bool:
    """Let the process keep the memory it frees; False where the C library is not glibc.

    By default glibc gives every tensor above 32 MB back to the kernel, which clears its pages at the next use: of a
    training step with 128 sequences of 140 tokens (0.26M Llama) that was more than half of the time.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, 1 << 30), (_TOP_PAD, 1 << 28), (_TRIM_THRESHOLD, (1 << 31) - 1))
    return all([mallopt(name, value) == 1 for name, value in settings])


def set_threads(begun: int | None = None) -> int:
    """Use as many threads as OMP_NUM_THREADS says, else as the run has `begun` with, else the cores there are.

    Another number of threads adds up in another order, so a resumed run keeps the number it began with.
    """
    import torch

    allowed = getattr(os, "sched_getaffinity", None)  # macOS has none
    cores = len(allowed(0)) if allowed else os.cpu_count() or 1
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # OpenMP allows a list, one number a level
    asked = int(first) if first.isdigit() else 0
    if begun and not asked and begun != cores:
        words = f"going on with {begun} threads, as begun ({cores} cores here); OMP_NUM_THREADS overrides"
        print(words, file=sys.stderr)
    threads = asked or begun or cores
    torch.set_num_threads(threads)
    return threads
