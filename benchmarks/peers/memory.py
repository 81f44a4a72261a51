"""The most memory that this process has had."""

from __future__ import annotations

from pathlib import Path


def peak_mib() -> float:
    """MiB resident at most so far (getrusage would count the process that started this one too)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
