"""A run directory as the ranks other than 0 have it: they read what is there, and write nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage.core.distributed import broadcast, follows
from tutelage.core.rundir import RunDir


def open_together(directory: RunDir, restart: bool) -> str:
    """`RunDir.open` by rank 0, whose verdict and manifest every rank gets."""
    found = "" if follows() else directory.open(restart)
    found, directory._manifest = broadcast((found, directory._manifest))
    return found


class Follower(RunDir):
    """A RunDir whose writing is left to rank 0."""

    def note(self, **facts: Any) -> None:
        self._manifest.update(facts)

    def log(self, row: Mapping[str, Any]) -> None:
        pass

    def append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        pass

    def sync(self) -> None:
        pass

    def truncate_metrics(self, last_step: int) -> None:
        pass

    def sample(self, rows: Sequence[Mapping[str, Any]]) -> None:
        pass

    def finish(self, summary: Mapping[str, Any]) -> Path:
        return self.path

    def fail(self, error: BaseException, status: str = "failed") -> None:
        pass
