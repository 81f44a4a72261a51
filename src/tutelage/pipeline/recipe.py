"""A recipe is a TOML file of stages in order; `@name` in a value is the run directory of an earlier stage."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from tutelage.core.config import build, expand, merge, read_toml
from tutelage.core.errors import ConfigError
from tutelage.core.rundir import write_atomic
from tutelage.model.hub import find_model_dir
from tutelage.pipeline.compare import CompareConfig, answers, measure
from tutelage.pipeline.stages import STAGES, launch, read_summary
from tutelage.report import stage_table, write_report

console = Console()


def run_recipe(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Path:
    """Run every stage of the recipe, skipping what is finished; write summary.json and report.html.

    ${HERE} in a value is the recipe's folder, any other ${NAME} the environment's NAME. A changed key re-runs the
    stages that depend on it: a stage's fingerprint contains its parents' fingerprints.
    """
    recipe = expand(merge(read_toml(path), overrides or {}), str(path), {"HERE": str(Path(path).parent)})
    out = Path(recipe.pop("out", None) or f"runs/{Path(path).stem}")
    shared = {"seed": recipe.pop("seed", 0)}
    compare = _compared(recipe, str(path))
    stages: dict[str, Path] = {}
    table = []
    old = {s["name"]: s for s in read_summary(out).get("stages", [])}
    for name, values in recipe.items():
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: {name!r} is neither a stage table nor one of: out, seed, compare")
        values = {**shared, **values}
        kind = values.pop("stage", name)
        if kind not in STAGES:
            raise ConfigError(f'{path}: [{name}] is no stage; give stage="..." one of {", ".join(STAGES)}')
        values = {k: _resolve(v, stages, f"{path}: [{name}] {k}") for k, v in values.items()}
        began = time.perf_counter()
        stages[name], ran = launch(kind, {**values, "out": str(out / name)}, restart=True)
        seconds = time.perf_counter() - began if ran else old.get(name, {}).get("seconds", 0.0)
        table.append(
            {
                "name": name,
                "kind": kind,
                "seconds": round(seconds, 1),
                "status": "run" if ran else "kept",
                "metrics": read_summary(stages[name]),
            }
        )
        _save(out, table, {}, [])
    results, rows = {}, []
    if compare:
        models = {label: stages.get(named, Path(named)) for label, named in compare.models.items()}
        rows = answers(models, compare)
        results = {**_stage_results(table), **measure(models, compare)}
    summary = _save(out, table, results, rows)
    write_report(out)
    console.print(stage_table(summary))
    for key, value in results.items():
        console.print(f"  {key:32} {value:.3f}")
    console.print(f"wrote {out / 'summary.json'} and {out / 'report.html'}")
    return out


RESULTS = {
    "sft": ("val_loss", "val_text_loss_before", "val_text_loss"),
    "reward": (
        "accuracy", "accuracy_ceiling", "gold_accuracy", "right_over_wrong", "kendall_tau", "length_only_accuracy",
    ),
    "ppo": ("kl", "last_mean5", "best_mean5", "text_loss_before", "text_loss", "gate_passed"),
}
"""What the summary repeats of each stage, so that one page answers whether the chain worked."""


def _stage_results(table: list[dict[str, Any]]) -> dict[str, float]:
    return {
        f"{s['name']}_{key}": float(s["metrics"][key])
        for s in table
        for key in RESULTS.get(s["kind"], ())
        if key in s["metrics"]
    }


def _resolve(value: Any, stages: Mapping[str, Path], where: str) -> Any:
    if isinstance(value, str) and value.startswith("@"):
        if value[1:] not in stages:
            raise ConfigError(f"{where}: {value!r} names no earlier stage; earlier: {', '.join(stages) or 'none'}")
        return str(stages[value[1:]])
    return value


def _compared(recipe: dict[str, Any], path: str) -> CompareConfig | None:
    """The [compare] table, taken out of the recipe; ConfigError when it names neither a stage nor a model's folder."""
    if "compare" not in recipe:
        return None
    compare = build(CompareConfig, recipe.pop("compare"), f"{path}: [compare]")
    for label, named in compare.models.items():
        if named not in recipe and find_model_dir(named) is None:
            known = ", ".join(recipe)
            raise ConfigError(f"{path}: [compare] models.{label}={named!r} is no stage and no model; stages: {known}")
    return compare


def _save(out: Path, stages: list[dict], results: dict, rows: list[dict]) -> dict[str, Any]:
    summary = {"stages": stages, "results": results, "answers": rows}
    write_atomic(out / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False))
    return summary
