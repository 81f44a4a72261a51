"""Atomic checkpoints without pickle: tensors in safetensors, everything else in JSON.

A checkpoint is written aside, fsynced and renamed, so a kill leaves either the old one or the new one.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tutelage.core.errors import RunError


def _split(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().clone().contiguous()
        return {"__tensor__": name}
    if isinstance(value, dict):
        return {"__items__": [[k, _split(v, f"{name}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return [_split(v, f"{name}/{i}", tensors) for i, v in enumerate(value)]
    return value


def _join(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        if "__tensor__" in value:
            return tensors[value["__tensor__"]]
        return {k: _join(v, tensors) for k, v in value["__items__"]}
    if isinstance(value, list):
        return [_join(v, tensors) for v in value]
    return value


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Write `state` (nested dicts and lists of tensors and JSON values) as `folder/step-N`; keep the newest `keep`."""
    target = folder / f"step-{step}"
    aside = folder / f".step-{step}.{os.getpid()}"
    tensors: dict[str, torch.Tensor] = {}
    plain = _split(state, "state", tensors)
    try:
        aside.mkdir(parents=True, exist_ok=True)
        save_file(tensors, aside / "state.safetensors")
        (aside / "state.json").write_text(json.dumps({"step": step, "state": plain}), encoding="utf-8")
        for file in aside.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        if target.exists():
            shutil.rmtree(target)
        aside.rename(target)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise RunError(f"{target}: cannot write the checkpoint ({error}); the previous one is kept") from error
    for old in _steps(folder)[:-keep]:
        shutil.rmtree(folder / f"step-{old}")
    return target


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return sorted(int(p.name[5:]) for p in folder.iterdir() if p.name.startswith("step-") and p.name[5:].isdigit())


def load_latest(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """(step, state) of the newest readable checkpoint, or None; a damaged one is passed over for the one before."""
    for step in reversed(_steps(folder)):
        path = folder / f"step-{step}"
        try:
            tensors = load_file(path / "state.safetensors")
            return step, _join(json.loads((path / "state.json").read_text(encoding="utf-8"))["state"], tensors)
        except Exception as error:  # safetensors raises its own type for truncated files
            print(f"{path}: damaged checkpoint passed over ({error})")
    return None
