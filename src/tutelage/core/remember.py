"""What costs time to find out and stays true is kept in the user's cache folder, for later processes."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tutelage.core.atomic import write_atomic
from tutelage.core.errors import RunError

T = TypeVar("T")
MOST = 500
"""Entries of a table; the oldest go first."""


def remembered(table: str, key: str, find: Callable[[], T], kind: type[T]) -> T:
    """`find()`, or what it gave for this key in an earlier process; `kind` is the type of a sound entry.

    Where no such folder can be written, every process finds out for itself.
    """
    file = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tutelage" / f"{table}.json"
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if not isinstance(known, dict):
        known = {}
    if isinstance(known.get(key), kind):
        return known[key]  # type: ignore[no-any-return]
    found = find()
    known.pop(key, None)
    kept = dict([*known.items(), (key, found)][-MOST:])
    with contextlib.suppress(RunError):
        write_atomic(file, json.dumps(kept, indent=1))
    return found
