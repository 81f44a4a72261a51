"""Out of memory: how libraries say it, and which key of the stage asks for less."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from typing import Any

from tutelage.core.errors import RunError

SAID = re.compile(r"out of memory|can't allocate memory|not enough memory|cannot allocate memory", re.IGNORECASE)
"""CUDA and MPS, PyTorch's CPU allocator on Linux and on Windows, the C library."""
HALVED = (
    "batch_size", "token_budget", "group_size", "n", "batch", "ask_batch", "ptx_batch", "block_size", "max_length",
    "max_tokens",
)  # fmt: skip
"""Keys that memory grows with, the one that changes the result least first."""
SWITCHED = {"checkpointing": (False, "true"), "method": ("full", "lora")}
"""Keys with a value that needs a lot, and one that needs less."""


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there is no memory left: Python's own, the system's, or a library's."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError) and bool(SAID.search(str(error)))


def out_of_memory(where: str, error: BaseException, config: Mapping[str, Any]) -> RunError:
    """The error that names the keys to change, with the values that the stage has now."""
    asked = re.search(r"allocate (?:memory: you tried to allocate )?(\d+ bytes|[\d.]+ [KMG]i?B)", str(error))
    size = f" (asked for {asked[1]})" if asked else ""
    fixes = [f"minibatches={2 * config['minibatches']}"] if config.get("minibatches") else []
    fixes += [
        f"{key}={config[key] // 2} (now {config[key]})"
        for key in HALVED
        if isinstance(config.get(key), int) and config[key] > 1
    ][: 3 - len(fixes)]
    fixes += [f"{key}={less}" for key, (much, less) in SWITCHED.items() if config.get(key) == much]
    words = "; try " + ", or ".join(fixes) if fixes else "; a smaller model or less data at once is needed"
    return RunError(f"{where}: out of memory{size}{words}. Checkpoints are kept; other keys need restart=true or out=")
