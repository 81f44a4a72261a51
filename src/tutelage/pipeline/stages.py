"""Run one stage by name into its run directory: fresh, resumed, or skipped when already finished."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tutelage.core.config import StageConfig, build
from tutelage.core.errors import ConfigError
from tutelage.core.rundir import RunDir
from tutelage.core.runtime import set_threads

STAGES = {
    "tokenizer": "TokenizerConfig",
    "prepare": "PrepareConfig",
    "pretrain": "PretrainConfig",
    "sft": "SftConfig",
    "rank": "RankConfig",
    "reward": "RewardConfig",
    "ppo": "PpoConfig",
}
INPUTS = ("tokenizer", "data", "held_out", "model", "reward", "judge", "ptx_data")
NO_FILES = ("preset:", "schoolroom:")


def config_class(kind: str) -> type[StageConfig]:
    """The configuration model of a stage; ConfigError lists the stages when there is none of that name."""
    if kind not in STAGES:
        raise ConfigError(f"no stage {kind!r}; stages: {', '.join(STAGES)}")
    return getattr(importlib.import_module(f"tutelage.stages.{kind}"), STAGES[kind])


def run(kind: str, restart: bool = False, **values: Any) -> Path:
    """Run one stage, e.g. `run("sft", model="runs/base", out="runs/sft")`. Returns its run directory.

    Raises ConfigError for wrong keys, DataError for wrong inputs, RunError for an unusable directory.
    """
    path, _ = launch(kind, values, restart=restart)
    return path


def launch(kind: str, values: Mapping[str, Any], restart: bool = False) -> tuple[Path, bool]:
    """As `run`; also says whether the stage was run now (False: it was already finished)."""
    config = build(config_class(kind), values, where=kind)
    out = Path(config.out or f"runs/{kind}")
    directory = RunDir(out, kind, config.model_dump(mode="json"), _parents(config))
    if directory.open(restart=restart) == "finished":
        directory.close()
        return out, False
    try:
        threads = set_threads()
        directory.note(device="cpu", threads=threads)
        stage = importlib.import_module(f"tutelage.stages.{kind}")
        directory.finish(stage.run(config, directory))
    except KeyboardInterrupt as error:
        directory.fail(error, "stopped")
        raise
    except Exception as error:
        directory.fail(error, "stopped" if type(error).__name__ == "Interrupted" else "failed")
        raise
    finally:
        directory.close()
    return out, True


def _parents(config: StageConfig) -> list[str]:
    """The inputs whose contents are part of what the run is: run directories, data, and files of functions."""
    out = []
    for name in INPUTS:
        given = getattr(config, name, None)
        if isinstance(given, str) and not given.startswith(NO_FILES):
            file = given.rpartition(":")[0]
            out.append(file if file.endswith(".py") else given)
    return [p for p in out if Path(p).exists() or "/" in p]


def read_summary(path: Path) -> dict[str, Any]:
    """summary.json of a run directory, or {}."""
    file = path / "summary.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
