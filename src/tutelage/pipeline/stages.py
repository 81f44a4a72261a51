"""Run one stage or study by name into its run directory: fresh, resumed, or skipped when already finished."""

from __future__ import annotations

import difflib
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from tutelage.core.config import StageConfig, build
from tutelage.core.distributed import broadcast, explained, follows, from_main, world_size
from tutelage.core.errors import ConfigError, Interrupted, RunError
from tutelage.core.follower import Follower, open_together
from tutelage.core.memory import out_of_memory, ran_out
from tutelage.core.rundir import PARTS, RunDir, read_manifest
from tutelage.core.runtime import generators_kept, keep_memory, reseed, set_threads
from tutelage.core.stop import StopFlag, stops_at_once, undisturbed

STAGES = {
    "tokenizer": "TokenizerConfig",
    "prepare": "PrepareConfig",
    "pretrain": "PretrainConfig",
    "mixture": "MixtureConfig",
    "sft": "SftConfig",
    "rank": "RankConfig",
    "reward": "RewardConfig",
    "ppo": "PpoConfig",
    "constitution": "ConstitutionConfig",
    "feedback": "FeedbackConfig",
    "conduct": "ConductConfig",
    "dpo": "DpoConfig",
    "grpo": "GrpoConfig",
    "bestofn": "BestofnConfig",
    "evaluate": "EvaluateConfig",
    "icl": "IclConfig",
    "star": "StarConfig",
    "metaicl": "MetaiclConfig",
}
STUDIES = {
    "ginc": "GincConfig", "induction": "InductionConfig", "fabrication": "FabricationConfig",
    "reward_curve": "RewardCurveConfig", "overoptimisation": "OveroptimisationConfig",
    "study-star": "StarStudyConfig", "instruction_tuning": "InstructionTuningConfig",
    "architectures": "ArchitecturesConfig",
}  # fmt: skip
"""Studies run like stages; a recipe does not hold them, and on the command line they stand behind `study`; one with the
name of a stage has "study-" before it here."""
TOGETHER = ("pretrain", "sft", "reward", "ppo", "grpo", "dpo")
"""Stages whose work the ranks of a torchrun job share."""
BY_ONE = (
    "tokenizer", "prepare", "mixture", "rank", "bestofn", "evaluate", "conduct", "icl", "constitution", "feedback",
)  # fmt: skip
"""Stages that rank 0 runs while the others wait."""
INPUTS = (
    "tokenizer", "data", "model", "sft", "proposer", "reward", "held_out_rewards", "judge", "gold", "held_out",
    "ptx_data", "helpful", "constitution", "mix", "test", "check", "exemplars", "ready", "evaluation",
)  # fmt: skip
LISTS = ("reward", "held_out_rewards", "evaluation")
"""Keys whose lists name files; those of others are patterns and the like."""
NO_FILES = ("preset:", "schoolroom:", "hf:", "arithmetic:", "http://", "https://")


def config_class(kind: str) -> type[StageConfig]:
    """The configuration model of a stage or study; ConfigError lists them when there is none of that name."""
    known = {**STAGES, **STUDIES}
    if kind not in known:
        near = difflib.get_close_matches(kind, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"no stage {kind!r}; {hint}stages: {', '.join(STAGES)}; studies: {', '.join(STUDIES)}")
    return getattr(_module(kind), known[kind])


def _module(kind: str) -> ModuleType:
    folder = "studies" if kind in STUDIES else "stages"
    return importlib.import_module(f"tutelage.{folder}.{kind.removeprefix('study-')}")


def run(kind: str, restart: bool = False, **values: Any) -> Path:
    """Run one stage, e.g. `run("sft", model="runs/base", out="runs/sft")`. Returns its run directory.

    Raises ConfigError for wrong keys, DataError for wrong inputs, RunError for an unusable directory.
    """
    path, _ = launch(kind, values, restart=restart)
    return path


def launch(kind: str, values: Mapping[str, Any], restart: bool = False) -> tuple[Path, bool]:
    """As `run`; also says whether the stage was run now (False: it was already finished).

    Ctrl-C and SIGTERM raise Interrupted once what can be saved is saved. The caller's random generators stay as they
    are, and do not influence the stage.
    """
    config = build(config_class(kind), values, where=kind)
    out = Path(config.out or f"runs/{kind}")
    require_spmd(kind)
    directory = (Follower if follows() else RunDir)(out, kind, config.model_dump(mode="json"), _inputs(config))
    if open_together(directory, restart) == "finished":
        directory.close()
        return out, False
    try:
        keep_memory()
        with stops_at_once(), generators_kept():
            keep_memory()
            directory.note(device="cpu", threads=set_threads(directory.recall("threads")))
            reseed(config.seed, kind)
            summary = _shared_out(kind, config, directory)
        with StopFlag() as stop:
            directory.finish(summary)
        broadcast(None)  # the next stage of every rank finds this one finished
    except KeyboardInterrupt:
        with undisturbed():
            stopped = Interrupted(f"{out}: stopped; {_saved(out)}; the same command resumes")
            directory.fail(stopped, "stopped")
        raise stopped from None
    except Exception as problem:
        error = explained(out_of_memory(str(out), problem, directory.config) if ran_out(problem) else problem)
        with undisturbed():
            directory.fail(error, "stopped" if isinstance(error, Interrupted) else "failed")
        if error is problem:
            raise
        raise error from problem
    finally:
        directory.close()
    if stop.set:
        raise Interrupted(f"{out}: finished, then stopped; the same command goes on")
    return out, True


def require_spmd(kind: str) -> None:
    """ConfigError under torchrun for what would be trained as many times as there are processes."""
    if world_size() > 1 and kind not in (*TOGETHER, *BY_ONE):
        raise ConfigError(
            f"{kind} does not share its work among processes yet, and {world_size()} were started; run it without "
            f"torchrun (shared: {', '.join(TOGETHER)}; by rank 0 alone: {', '.join(BY_ONE)})"
        )


def _shared_out(kind: str, config: StageConfig, directory: RunDir) -> dict[str, Any]:
    """The stage's summary: of a stage of one process rank 0's."""
    module = _module(kind)
    if kind in TOGETHER:
        return module.run(config, directory)
    return from_main(lambda: module.run(config, directory))


def _saved(out: Path) -> str:
    """What a run that was stopped between its steps can go on from, in words."""
    from tutelage.train.checkpoint import saved_steps

    if parts := [p for p in (out / PARTS).glob("*/*") if not p.name.startswith(".")]:
        return f"{len(parts)} finished parts are kept"
    steps = saved_steps(out / "checkpoints")
    return f"step {steps[-1]} is saved" if steps else "it had no checkpoint yet and begins anew"


def files_of(config: BaseModel) -> dict[str, str]:
    """Keys that name data or a file of functions, with the path: what has to be there before the stage begins.

    Models and tokenizers may be a hub's names instead, and are not among them."""
    out = {}
    functions = ("judge", "reward", "gold", "check")
    names = ("data", "held_out", "ptx_data", "helpful", "mix", "test", "exemplars", "ready", *functions)
    for key, given in _named(config, names):
        name = key.partition(".")[0]
        file = given.rpartition(":")[0]
        if file.endswith(".py") or name not in functions:
            out[key] = file if file.endswith(".py") else given
    return out


def _named(config: BaseModel, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(key, value) of the keys that may name files; of a list within a key each as "key.0", "key.1.0"."""

    def walk(key: str, given: Any) -> Iterator[tuple[str, str]]:
        if isinstance(given, str) and not given.startswith(NO_FILES):
            yield key, given
        for number, one in enumerate(given if isinstance(given, list) else ()):
            yield from walk(f"{key}.{number}", one)

    for name in names:
        given = getattr(config, name, None)
        if name in LISTS or not isinstance(given, list):
            yield from walk(name, given)


def _inputs(config: StageConfig) -> dict[str, str]:
    """The inputs whose contents are part of what the run is: run directories, data, and files of functions.

    RunError for a run that is not finished: what it holds may be half of what it will hold.
    """
    out = {}
    for name, given in _named(config, INPUTS):
        file = given.rpartition(":")[0]
        file = file if file.endswith(".py") else given
        if not Path(file).exists() and "/" not in file:
            continue
        require_finished(file, f"{name}={given}")
        out[name] = file
    return {**config.named_files(), **out}


def require_finished(path: str | Path, where: str) -> None:
    """RunError if `path` is the directory of a run that has not finished."""
    status = (read_manifest(path) or {}).get("status", "finished") if Path(path).is_dir() else "finished"
    if status != "finished":
        words = "running, or was killed" if status == "running" else status
        raise RunError(f"{where}: that run is not finished (it is {words}); run its command again first")


def read_summary(path: Path) -> dict[str, Any]:
    """summary.json of a run directory, or {}. RunError when it is damaged."""
    file = path / "summary.json"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}
    except (ValueError, TypeError) as error:
        raise RunError(f"{file}: damaged ({error}); remove it, or choose another out=") from None
