"""Atomic checkpoints without pickle: tensors in safetensors, everything else in JSON.

A checkpoint is written aside, fsynced and renamed, so a kill leaves either the old one or the new one. Its manifest has
every file's checksum, so that one which a disk or a copy has damaged is noticed and passed over.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from tutelage.core.atomic import sweep, write_folder
from tutelage.core.checksums import DamagedError, check, facts_of, seal
from tutelage.core.distributed import broadcast, follows
from tutelage.core.errors import RunError
from tutelage.train.sharded import is_sharded, matching, read_shards, write_shards


def _split(value: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """(the JSON values with names in place of tensors, the tensors by name); only what shares memory is copied: a copy
    of everything would make saving the moment of highest memory."""
    tensors: dict[str, torch.Tensor] = {}
    stored: set[int] = set()

    def walk(value: Any, name: str) -> Any:
        if isinstance(value, torch.Tensor) and is_sharded(value):
            name = next((known for known, tensor in tensors.items() if tensor is value), name)  # tied weights
            tensors[name] = value
            return {"__tensor__": name}
        if isinstance(value, torch.Tensor):
            tensor = value.detach().contiguous()
            storage = tensor.untyped_storage().data_ptr()
            tensors[name] = tensor.clone() if storage in stored else tensor  # safetensors takes a storage once
            stored.add(storage)
            return {"__tensor__": name}
        if isinstance(value, dict):
            return {"__items__": [[k, walk(v, f"{name}/{k}")] for k, v in value.items()]}
        if isinstance(value, list | tuple):
            return [walk(v, f"{name}/{i}") for i, v in enumerate(value)]
        return value

    return walk(value, "state"), tensors


def _join(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        if "__tensor__" in value:
            return tensors[value["__tensor__"]]
        return {k: _join(v, tensors) for k, v in value["__items__"]}
    if isinstance(value, list):
        return [_join(v, tensors) for v in value]
    return value


def save_checkpoint(
    folder: Path, step: int, state: dict[str, Any], keep: int = 2, measured: float | None = None
) -> Path:
    """Write `state` (nested dicts and lists of tensors and JSON values) as `folder/step-N`; keep the newest `keep`, and
    the one with the lowest `measured` (the first of equals; None: not measured at this step).

    Checkpoints of later steps go: they were damaged, and the run went back behind them. RunError when the disk refuses;
    the older ones are then all kept.
    """
    plain, tensors = _split(state)
    shards = any(map(is_sharded, tensors.values()))
    if follows():  # of shards a rank writes its own, into rank 0's folder; else rank 0 has them all
        if shards:
            write_shards(tensors, broadcast(folder))
            broadcast(None)
        return folder / f"step-{step}"

    def write(aside: Path) -> None:
        if shards:
            write_shards(tensors, broadcast(aside))
        else:
            save_file(tensors, aside / "state.safetensors")
        (aside / "state.json").write_text(json.dumps({"step": step, "state": plain}), encoding="utf-8")
        seal(aside, step=step, measured=measured)

    sweep(folder)
    try:
        target = write_folder(folder / f"step-{step}", write)
    except RunError as error:
        kept = [s for s in saved_steps(folder) if s < step]
        raise RunError(f"{error} (step {kept[-1]} is saved)" if kept else str(error)) from error
    steps = saved_steps(folder)
    if shards:
        broadcast(None)  # it is in its place: now a rank may end
    before, after = (steps[: steps.index(step) + 1], steps[steps.index(step) + 1 :])
    for old in {*before[:-keep], *after} - {best_step(folder, before)}:
        shutil.rmtree(folder / f"step-{old}", ignore_errors=True)
    return target


def saved_steps(folder: Path) -> list[int]:
    """The steps of which `folder` has a checkpoint, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name[5:]) for p in folder.iterdir() if p.name.startswith("step-") and p.name[5:].isdigit())


def best_step(folder: Path, steps: list[int]) -> int | None:
    """The first of `steps` whose checkpoint has the lowest measurement; None where none was measured."""
    found: list[tuple[float, int]] = []
    for step in steps:
        with contextlib.suppress(DamagedError):  # a damaged one is passed over, here as on loading
            value = facts_of(folder / f"step-{step}").get("measured")
            if value is not None and math.isfinite(value):
                found.append((value, step))
    return min(found)[1] if found else None


def load_latest(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """(step, state) of the newest checkpoint, None where there is none yet; a damaged one is passed over for the one
    before. RunError where all are damaged."""
    steps = saved_steps(folder)
    for step in reversed(steps):
        path = folder / f"step-{step}"
        try:
            check(path)
            # copies: the file's own pages are neither aligned as torch aligns memory, nor safe once it is replaced
            file = path / "state.safetensors"
            whole = {name: tensor.clone() for name, tensor in load_file(file).items()} if file.exists() else None
            tensors = read_shards(path) if whole is None else whole
            return step, _join(json.loads((path / "state.json").read_text(encoding="utf-8"))["state"], tensors)
        except (DamagedError, SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            print(f"{path}: damaged checkpoint passed over ({error})", file=sys.stderr)
    if steps:
        words = f"every checkpoint is damaged ({len(steps)}: step {', '.join(map(str, steps))})"
        raise RunError(f"{folder}: {words}; copy one back from a backup, or remove {folder} to begin anew")
    return None


class Trained:
    """The trained parameters of a model most of which is frozen, as what a checkpoint holds of it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {name: p.detach() for name, p in self._parameters().items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        own = self._parameters()
        if own.keys() != state.keys():
            odd = sorted(own.keys() ^ state.keys())[0]
            raise RunError(f"the checkpoint has other trained parameters than the model: {odd}")
        for name, parameter in own.items():
            parameter.copy_(matching(state[name], parameter))
