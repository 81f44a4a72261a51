"""What a report needs of a run directory, read forgivingly: a run that was cut short has a report too."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass
class StageRun:
    """One stage's directory. Files that are absent or damaged leave their field empty."""

    name: str
    path: Path
    kind: str
    manifest: Row = field(default_factory=dict)
    summary: Row = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """(steps, values) of one metric: only rows in which both are finite numbers.

        A resumed run may have logged a step twice; the later row is the one that counted.
        """
        points: dict[float, float] = {}
        for row in self.rows:
            step, value = finite(row.get("step")), finite(row.get(key))
            if step is not None and value is not None:
                points[step] = value
        steps = sorted(points)
        return steps, [points[s] for s in steps]


@dataclass(frozen=True)
class Sheet:
    """A table of texts."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def finite(value: Any) -> float | None:
    """The value as a float, or None when it is no finite number (bool counts as no number)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def read_json(path: Path) -> Row:
    """A JSON object, or {} where the file is absent, damaged or no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_rows(path: Path) -> list[Row]:
    """JSONL rows; lines that are no JSON object (the last one, cut by a kill) are left out."""
    rows: list[Row] = []
    try:
        # Split at "\n" alone: str.splitlines would also cut at U+2028, which JSON strings may hold.
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return rows
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def read_stage(path: Path) -> StageRun:
    """Read one stage directory; the kind falls back to the folder's name."""
    manifest = read_json(path / "manifest.json")
    kind = manifest.get("kind")
    return StageRun(
        name=path.name,
        path=path,
        kind=kind if isinstance(kind, str) else path.name,
        manifest=manifest,
        summary=read_json(path / "summary.json"),
        rows=read_rows(path / "metrics.jsonl"),
    )


def read_stages(run_dir: Path, order: Iterable[str] = ()) -> list[StageRun]:
    """Stage directories under `run_dir`: those named in `order` first, the rest by start time and name."""
    found = [read_stage(path) for path in sorted(run_dir.iterdir()) if is_stage(path)]
    rank = {name: i for i, name in enumerate(order)}
    return sorted(found, key=lambda s: (rank.get(s.name, len(rank)), str(s.manifest.get("started", "")), s.name))


def is_stage(path: Path) -> bool:
    """A folder that holds a manifest or metrics; what a restart has moved aside (`.old-`) is none."""
    if not path.is_dir() or ".old-" in path.name or path.name.startswith("."):
        return False
    return (path / "manifest.json").is_file() or (path / "metrics.jsonl").is_file()


def mappings(value: Any) -> list[Mapping[str, Any]]:
    """The mappings of a list; anything else counts as empty."""
    return [v for v in value if isinstance(v, Mapping)] if isinstance(value, list) else []


def number_text(value: Any) -> str:
    """A number for a table: whole numbers in full, the rest with 3 to 4 significant places; other values as text."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}" if abs(value) < 100 else f"{value:.1f}"
    return str(value)


def time_text(seconds: Any) -> str:
    """Seconds as "4.2 s", "3 min 05 s" or "2 h 07 min"; "" where there is no number."""
    number = finite(seconds)
    if number is None:
        return ""
    if number < 59.95:
        return f"{number:.1f} s"
    whole = round(number)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(number / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def metrics_text(metrics: Any, limit: int = 6) -> str:
    """The `limit` main entries of a stage's metrics as "name value, name value"; `flat_metrics` gives all.

    A value with bounds beside it (accuracy, accuracy_low, accuracy_high) is one entry: "accuracy 0.8 (0.7 to 0.9)".
    """
    flat = flat_metrics(metrics)
    bounded = [k for k in flat if f"{k}_low" in flat and f"{k}_high" in flat]
    texts = {k: number_text(v) for k, v in flat.items()}
    for k in bounded:
        texts[k] += f" ({texts.pop(f'{k}_low')} to {texts.pop(f'{k}_high')})"
    names = sorted(texts, key=lambda k: MAIN.index(k) if k in MAIN else len(MAIN))
    return ", ".join(f"{k} {texts[k]}" for k in names[:limit])


def flat_metrics(metrics: Any) -> Row:
    """Numbers and texts of a stage's summary; lists and tables are left out."""
    if not isinstance(metrics, Mapping):
        return {}
    return {str(k): v for k, v in metrics.items() if isinstance(v, int | float | str)}


MAIN = (
    "gold",
    "proxy",
    "kl",
    "last_mean5",
    "best_mean5",
    "accuracy",
    "right_over_wrong",
    "length_only_accuracy",
    "kendall_tau",
    "calibration_error",
    "probe",
    "val_loss",
    "val_loss_before",
    "loss",
    "parameters",
)
"""What a line of the table shows first when a stage has more numbers than fit."""
