"""Claim: optimised against a reward model, a policy first gains and then loses what it stands for (Gao et al. 2022).

Reward models trained on few or many rankings, small or large, are optimised against with several KL coefficients and
pretraining mixes; gold (which the policy never sees) and proxy are laid against sqrt(KL) with the fitted law. Every
reward model and every PPO run is a run directory of its own inside the study's: interrupted, the same command goes on.
What an early stop would have kept is worked out from the same curves, since the rule only looks on.
"""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from tutelage.core.config import StageConfig, build
from tutelage.core.rundir import RunDir
from tutelage.report.plots import Panel, save_figure
from tutelage.report.read import read_stage
from tutelage.stages import ppo, reward
from tutelage.studies.parts import stage
from tutelage.train.drive import console
from tutelage.train.early_stop import EarlyStop

Rows = list[dict[str, Any]]
WINDOW = 5


class OveroptimisationConfig(StageConfig):
    model: str
    """The SFT model: policy, reference and (where reward_models is empty) what reward models begin from."""
    rankings: str
    """What reward models are trained on: the run directory of `rank`, a file or a folder."""
    data: str = "schoolroom:demo"
    """Prompts for PPO, whose gold judge is known (the embedded world's own, or gold=)."""
    gold: str | None = None
    """file.py:function, for other data."""
    reward_models: list[str] = []
    """Models of other sizes that reward models begin from, e.g. [runs/small/sft,runs/large/sft]."""
    rows: list[int] = [100_000]
    """Training prompts of the reward models, a reward model each."""
    reward_steps: int = Field(120, ge=1)
    """Optimiser steps of a reward model."""
    features: bool = False
    """Log-prob features; without them a reward model sees manner more easily than truth."""
    kl_coef: list[float] = [0.0]
    ptx_coef: list[float] = [0.3]
    ptx_data: str | None = None
    """Run directory of `prepare`, for ptx_coef."""
    seeds: int = Field(3, ge=1)
    updates: int = Field(60, ge=1)
    batch_size: int = Field(256, ge=1)
    max_tokens: int = Field(24, ge=1)
    patience: int = Field(15, ge=1)
    """Of the early stop that is tried on the curves."""

    @model_validator(mode="after")
    def _something(self) -> OveroptimisationConfig:
        for name in ("rows", "kl_coef", "ptx_coef"):
            if not getattr(self, name):
                raise ValueError(f"{name}=[]: expected at least one value")
        return self


def run(config: OveroptimisationConfig, run: RunDir) -> dict[str, Any]:
    """All cells; summary: a row each, and how many rose and then fell by at least 0.1, and stopped within 5%."""
    cells: Rows = []
    bases = config.reward_models or [config.model]
    for base, rows, seed in product(bases, config.rows, range(config.seeds)):
        name = f"reward-{'-'.join(Path(base).parts[-2:])}-{rows}-{seed}"
        found = stage(run, name, _reward(config, base, rows, seed), reward.run)
        for kl, ptx in product(config.kl_coef, config.ptx_coef):
            part = f"ppo-{name.removeprefix('reward-')}-kl{kl:g}-ptx{ptx:g}"
            stage(run, part, _ppo(config, run.path / name, kl, ptx, seed), ppo.run)
            cell = {"run": part, "reward_from": base, "rows": rows, "seed": seed, "kl_coef": kl, "ptx_coef": ptx,
                    "accuracy": found.get("accuracy"), **_cell(run.path / part, config.patience)}  # fmt: skip
            cells.append(cell)
            console.print(f"[bold]{part}[/] {_words(cell)}")
    save_figure(run.path, "study", _panels(config, run.path, cells), 3)
    return {**_verdict(cells), "cells": cells}


def _reward(config: OveroptimisationConfig, base: str, rows: int, seed: int) -> reward.RewardConfig:
    values = {"model": base, "data": config.rankings, "rows": rows, "seed": seed, "steps": config.reward_steps,
              "features": config.features}  # fmt: skip
    return build(reward.RewardConfig, values, where="reward")


def _ppo(config: OveroptimisationConfig, judge: Path, kl: float, ptx: float, seed: int) -> ppo.PpoConfig:
    values: dict[str, Any] = {
        "model": config.model, "reward": str(judge), "data": config.data, "kl_coef": kl, "seed": seed,
        "updates": config.updates, "batch_size": config.batch_size, "max_tokens": config.max_tokens,
        "ptx_coef": ptx if config.ptx_data else 0.0, "gate": None,
    }  # fmt: skip
    for key in ("gold", "ptx_data"):
        if getattr(config, key):
            values[key] = getattr(config, key)
    return build(ppo.PpoConfig, values, where="ppo")


def _cell(path: Path, patience: int) -> dict[str, Any]:
    """What one run's curves say, and where the early stop would have ended it."""
    made = read_stage(path)
    summary, (_, gold), (_, proxy) = made.summary, made.series("gold"), made.series("proxy")
    kept = ("gold_best", "gold_best_distance", "gold_last", "gold_lost", "gold_fit", "proxy_fit", "diagnosis", "kl")
    out = {k: summary[k] for k in kept if k in summary}
    rule = EarlyStop(patience, WINDOW)
    for value in gold:
        rule.update(value)
        if rule.stop:
            break
    if gold and rule.best is not None and "gold_best" in out:
        out |= {"gold_start": gold[0], "stop_update": len(rule.values), "stop_keeps": rule.best,
                "stop_of_best": rule.best / out["gold_best"] if out["gold_best"] else math.nan}  # fmt: skip
        out |= {"proxy_start": sum(proxy[:WINDOW]) / WINDOW, "proxy_last": sum(proxy[-WINDOW:]) / WINDOW}
    return out


def _verdict(cells: Rows) -> dict[str, Any]:
    known = [c for c in cells if "gold_best" in c and "stop_keeps" in c]
    fell = [c for c in known if c["gold_best"] > c["gold_start"] and c["gold_lost"] >= 0.1
            and c["proxy_last"] > c["proxy_start"]]  # fmt: skip
    near = [c for c in known if c["stop_keeps"] >= 0.95 * c["gold_best"]]
    return {"runs": len(known), "rose_then_fell": len(fell), "stopped_within_5_percent": len(near)}


def _words(cell: dict[str, Any]) -> str:
    if "gold_best" not in cell or "stop_keeps" not in cell:
        return "no gold score"
    fitted = cell.get("gold_fit") or {}
    r2 = f", fit R2 {fitted['r2']:.2f}" if fitted else ""
    return (
        f"gold {cell['gold_start']:.3f} -> best {cell['gold_best']:.3f} -> last {cell['gold_last']:.3f}, proxy "
        f"{cell['proxy_start']:.2f} -> {cell['proxy_last']:.2f}{r2}; an early stop keeps {cell['stop_keeps']:.3f}"
    )


def _panels(config: OveroptimisationConfig, folder: Path, cells: Rows) -> list[Panel]:
    """Gold and proxy against sqrt(KL), a line a setting (of the first seed)."""
    out = []
    for key in ("gold", "proxy"):
        lines = []
        for cell in (c for c in cells if c["seed"] == 0):
            made = read_stage(folder / cell["run"])
            steps, values = made.series(key)
            kl = dict(zip(*made.series("kl"), strict=True))
            points = [(math.sqrt(max(kl[s], 0.0)), v) for s, v in zip(steps, values, strict=True) if s in kl]
            label = f"{cell['rows']} rows, kl {cell['kl_coef']:g}, ptx {cell['ptx_coef']:g}"
            lines.append((label, [p[0] for p in points], [p[1] for p in points]))
        out.append(Panel(f"{key} against distance", "sqrt(KL)", key, [line for line in lines if line[1]]))
    return out
