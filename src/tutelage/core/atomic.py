"""Files and folders that are there whole or not at all, whatever kills the process that writes them.

Both are written aside, as `.NAME.PID.part`, fsynced and renamed. A folder cannot be renamed over another: the older one
is first moved to `.NAME.PID.old`, and if the process dies between the two renames, the next writer puts it back. Of the
ranks of one job only rank 0 writes: the functions do nothing in the others (core/distributed.py).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from tutelage.core.distributed import follows
from tutelage.core.errors import RunError, TutelageError

_LEFT = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.(?P<what>part|old)")


def write_atomic(path: Path, text: str) -> None:
    """Write a text file: a reader sees the old one or the new one, never half. RunError when the disk refuses."""
    if follows():
        return
    aside = _aside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, path.name)
        # A lone surrogate in a model's text is no UTF-8; it is written as "?".
        aside.write_text(text, encoding="utf-8", errors="replace")
        _sync(aside)
        aside.replace(path)
        _sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):  # a disk that is read-only refuses this too
            aside.unlink(missing_ok=True)
        raise unwritable(path, error) from error


def write_folder(folder: str | os.PathLike[str], write: Callable[[Path], object]) -> Path:
    """Call `write(temporary folder)` and put the result in place of `folder`; an older one there is replaced.

    RunError when the disk refuses; whatever `write` raises, the older folder stays as it was.
    """
    target = Path(folder)
    if follows():
        return target
    aside = _aside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent, target.name)
        aside.mkdir()
        write(aside)
        for place, _, names in os.walk(aside):
            for name in [*names, "."]:
                _sync(Path(place) / name)
        if target.exists():
            target.rename(aside.with_suffix(".old"))
        aside.rename(target)
        _sync(target.parent)
        shutil.rmtree(aside.with_suffix(".old"), ignore_errors=True)
    except BaseException as error:
        with contextlib.suppress(OSError):
            sweep(target.parent, target.name)  # puts the older folder back if it was moved already
        if disk_refused(error):
            raise unwritable(target, error) from error
        raise
    return target


def sweep(parent: Path, name: str | None = None) -> None:
    """Remove what dead writers of `parent/name` (None: of anything in `parent`) left, and put back what they moved.

    A writer that still lives keeps its files; this process counts as dead, as it calls this before or after writing.
    """
    for left in list(parent.iterdir()) if parent.is_dir() and not follows() else []:
        found = _LEFT.fullmatch(left.name)
        if not found or name not in (None, found["name"]) or _alive(int(found["pid"])):
            continue
        target = parent / found["name"]
        if found["what"] == "old" and not target.exists():
            left.rename(target)
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def disk_refused(error: BaseException) -> bool:
    """Whether an error is the disk's: full, read-only, no permission. Rust libraries say so in words of their own."""
    if isinstance(error, TutelageError):
        return False
    return isinstance(error, OSError) or bool(re.search(r"os error \d+|StorageFull", str(error)))


def unwritable(path: Path, error: BaseException) -> RunError:
    """The error that says what could not be written, why, and what to do."""
    words = getattr(error, "strerror", None) or str(error)
    return RunError(f"{path}: cannot write ({words}); make room there or choose another out=")


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _alive(pid: int) -> bool:
    """Whether another process has this id."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def _sync(path: Path) -> None:
    """Wait until a file's contents, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
