"""A folder that can tell whether it still holds what was written into it: every file's length and SHA-256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MANIFEST = "checksums.json"


class DamagedError(Exception):
    """A sealed folder does not hold what was written; the message says which file, and how it differs."""


def seal(folder: Path, **facts: Any) -> None:
    """Write the folder's manifest: length and SHA-256 of every file in it, and `facts` (JSON) about the whole."""
    files = {name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for name, path in _files(folder)}
    (folder / MANIFEST).write_text(json.dumps({"facts": facts, "files": files}, indent=1), encoding="utf-8")


def facts_of(folder: Path) -> dict[str, Any]:
    """The facts that `seal` wrote, whatever has become of the files. DamagedError without a readable manifest."""
    return dict(_manifest(folder)["facts"])


def check(folder: Path) -> None:
    """DamagedError unless every sealed file is there with its length and content."""
    for name, wanted in _manifest(folder)["files"].items():
        path = folder / name
        if not path.is_file():
            raise DamagedError(f"{name} is missing")
        if (size := path.stat().st_size) != wanted["bytes"]:
            raise DamagedError(f"{name} has {size} bytes, {wanted['bytes']} were written")
        if _sha256(path) != wanted["sha256"]:
            raise DamagedError(f"{name} has another SHA-256 than when it was written")


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if isinstance(found["files"], dict) and isinstance(found["facts"], dict):
            return dict(found)
        raise ValueError("no list of files")
    except FileNotFoundError:
        raise DamagedError(f"{MANIFEST} is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{MANIFEST} cannot be read: {error}") from None


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name within the folder, path) of every file, the manifest apart."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and (name := path.relative_to(folder).as_posix()) != MANIFEST:
            yield name, path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
