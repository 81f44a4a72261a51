"""A part of a long job as a run directory of its own: done once, gone on with after a kill."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from tutelage.core.errors import Interrupted
from tutelage.core.rundir import RunDir
from tutelage.core.runtime import set_threads


def part(
    run: RunDir,
    name: str,
    config: Mapping[str, Any],
    work: Callable[[RunDir], dict[str, Any]],
    inputs: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """`work(inner run directory)` in the folder `name` of the run's: finished, it is not done again; else it resumes.

    `inputs` as RunDir has them: keys of the configuration that name files or runs, which count by their contents.
    Returns the part's summary. Whatever `work` raises marks the part and is raised again.
    """
    inner = RunDir(run.path / name, f"{run.kind}-{name}", config, inputs)
    if inner.open() == "finished":
        inner.close()
        return dict(json.loads((inner.path / "summary.json").read_text(encoding="utf-8")))
    try:
        inner.note(device="cpu", threads=set_threads(inner.recall("threads")))
        summary = work(inner)
        inner.finish(summary)
    except BaseException as error:
        inner.fail(error, "stopped" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed")
        raise
    finally:
        inner.close()
    return summary
