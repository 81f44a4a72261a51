"""A recipe is a TOML file of stages in order; `@name` in a value is the run directory of an earlier stage."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tutelage.core.atomic import sweep, write_atomic
from tutelage.core.config import build, expand, merge, read_toml
from tutelage.core.distributed import from_main
from tutelage.core.errors import ConfigError, DataError, Interrupted, RunError
from tutelage.core.rundir import read_manifest
from tutelage.core.stop import stops_at_once
from tutelage.model.hub import find_model_dir
from tutelage.pipeline.compare import CompareConfig, answers, measure
from tutelage.pipeline.stages import STAGES, config_class, files_of, launch, read_summary, require_spmd
from tutelage.report import stage_table, write_report

console = Console()
progress = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Step:
    """One stage of a recipe: its name, its kind, its resolved keys."""

    name: str
    kind: str
    values: dict[str, Any]


def run_recipe(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Path:
    """Run every stage of the recipe, skipping what is finished; write summary.json and report.html.

    ${HERE} in a value is the recipe's folder, any other ${NAME} the environment's NAME. The whole recipe is checked
    before the first stage starts. A changed key re-runs the stages that depend on it: a stage's fingerprint contains
    its parents' fingerprints. Interrupted on Ctrl-C and SIGTERM.
    """
    out, steps, compare = plan(path, overrides)
    for step in steps:
        require_spmd(step.kind)
    from_main(lambda: _claimable(out, [step.name for step in steps]))
    sweep(out)
    table: list[dict[str, Any]] = []
    for number, step in enumerate(steps, 1):
        progress.print(f"[bold]{step.name}[/] (stage {number} of {len(steps)})")
        folder, ran = launch(step.kind, step.values, restart=True)
        table.append(
            {
                "name": step.name,
                "kind": step.kind,
                "seconds": round(float((read_manifest(folder) or {}).get("seconds", 0.0)), 1),
                "status": "run" if ran else "kept",
                "metrics": read_summary(folder),
            }
        )
        _save(out, table, {}, [])
    try:
        with stops_at_once():
            summary = from_main(lambda: _conclude(out, table, compare))
    except KeyboardInterrupt:
        raise Interrupted(f"{out}: stopped; every stage is finished, the same command writes the report") from None
    console.print(stage_table(summary))
    for key, value in summary["results"].items():
        console.print(f"  {key:32} {value:.3f}")
    console.print(f"wrote {out / 'summary.json'} and {out / 'report.html'}")
    return out


def plan(
    path: str | Path, overrides: Mapping[str, Any] | None = None, files: bool = True
) -> tuple[Path, list[Step], CompareConfig | None]:
    """(run directory, stages in order, comparison) of a recipe. ConfigError names the table and key that is wrong,
    DataError a file that is not there (not asked with `files=False`)."""
    recipe = expand(merge(read_toml(path), overrides or {}), str(path), {"HERE": str(Path(path).parent)})
    out = Path(recipe.pop("out", None) or f"runs/{Path(path).stem}")
    shared = {"seed": recipe.pop("seed", 0)}
    compare = _compared(recipe, str(path)) if files else None
    recipe.pop("compare", None)
    stages: dict[str, Path] = {}
    steps = []
    for name, values in recipe.items():
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: {name!r} is neither a stage table nor one of: out, seed, compare")
        values = {**shared, **values}
        kind = values.pop("stage", name)
        if kind not in STAGES:
            near = difflib.get_close_matches(str(kind), [*STAGES, *stages], n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? Else " if near else ""
            raise ConfigError(f'{path}: [{name}] is no stage; {hint}give stage="..." one of {", ".join(STAGES)}')
        values = {k: _resolve(v, stages, f"{path}: [{name}] {k}") for k, v in values.items()}
        values["out"] = str(out / name)
        config = build(config_class(kind), values, where=f"{path}: [{name}]")
        for key, given in files_of(config).items():
            if files and Path(given) not in stages.values() and not Path(given).exists():
                raise DataError(f"{path}: [{name}] {key}={given!r}: no such file or folder")
        stages[name] = out / name
        steps.append(Step(name, kind, values))
    if not steps:
        raise ConfigError(f"{path}: no stage; expected at least one table such as [tokenizer]")
    return out, steps, compare


def _claimable(out: Path, names: list[str]) -> None:
    """RunError for a folder that holds something and none of it is a pipeline run's."""
    held = sorted(p.name for p in out.iterdir() if not p.name.startswith(".")) if out.is_dir() else []
    ours = "stages" in read_summary(out) or any((out / name / "manifest.json").is_file() for name in names)
    foreign = [name for name in held if name not in names]
    if foreign and not ours:
        raise RunError(f"{out}: holds {foreign[0]} and is no pipeline run; choose another out=")


def _conclude(out: Path, table: list[dict[str, Any]], compare: CompareConfig | None) -> dict[str, Any]:
    """Compare the models, write summary.json and report.html."""
    results: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    if compare:
        progress.print("[bold]compare[/]")
        stages = {stage["name"]: out / stage["name"] for stage in table}
        models = {label: stages.get(named, Path(named)) for label, named in compare.models.items()}
        rows = answers(models, compare)
        results = {**_stage_results(table), **measure(models, compare)}
    summary = _save(out, table, results, rows)
    write_report(out)
    return summary


RESULTS = {
    "sft": ("val_loss", "val_text_loss_before", "val_text_loss"),
    "reward": (
        "accuracy", "accuracy_ceiling", "gold_accuracy", "right_over_wrong", "kendall_tau", "length_only_accuracy",
    ),
    **dict.fromkeys(
        ("ppo", "grpo"), ("kl", "last_mean5", "best_mean5", "text_loss_before", "text_loss", "gate_passed")
    ),
    "dpo": ("kl", "last_mean5", "best_mean5", "gold", "val_accuracy", "text_loss_before", "text_loss"),
    "bestofn": ("kl", "proxy", "gold"),
    "metaicl": ("accuracy_before", "accuracy", "gain"),
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
    if isinstance(value, list):
        return [_resolve(one, stages, where) for one in value]
    if isinstance(value, str) and value.startswith("@"):
        if value[1:] not in stages:
            near = difflib.get_close_matches(value[1:], stages, n=1, cutoff=0.5)
            hint = f"did you mean '@{near[0]}'? " if near else ""
            earlier = ", ".join(stages) or "none"
            raise ConfigError(f"{where}: {value!r} names no earlier stage; {hint}earlier: {earlier}")
        return str(stages[value[1:]])
    return value


def _compared(recipe: dict[str, Any], path: str) -> CompareConfig | None:
    """The [compare] table, taken out of the recipe; ConfigError when it names neither a stage nor a model's folder."""
    if "compare" not in recipe:
        return None
    given = recipe.pop("compare")
    compare = build(CompareConfig, given if isinstance(given, dict) else {}, f"{path}: [compare]")
    for key, named in files_of(compare).items():
        if not Path(named).exists():
            raise DataError(f"{path}: [compare] {key}={named!r}: no such file or folder")
    for label, named in compare.models.items():
        if named not in recipe and find_model_dir(named) is None:
            near = difflib.get_close_matches(named, recipe, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            where = f"{path}: [compare] models.{label}={named!r}"
            raise ConfigError(f"{where} is no stage and no model; {hint}stages: {', '.join(recipe) or 'none'}")
    return compare


def _save(out: Path, stages: list[dict], results: dict, rows: list[dict]) -> dict[str, Any]:
    summary = {"stages": stages, "results": results, "answers": rows}
    write_atomic(out / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False))
    return summary
