"""In-context training: k-shot accuracy on target tasks before and after, as a table and as curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage.report.plots import Panel, save_figure
from tutelage.report.read import Sheet, StageRun, mappings

Row = Mapping[str, Any]
MEASURED = ("before", "after", "gain")


def before_after_sheet(summary: Row) -> Sheet | None:
    """A row for each group of targets and number of shots; None for another stage's summary."""
    rows = [row for row in mappings(summary.get("groups")) if "before" in row and "after" in row]
    if not rows:
        return None
    lines = [
        [*(str(row[key]) for key in ("group", "tasks", "shots")), *(_bounded(row, key) for key in MEASURED)]
        for row in rows
    ]
    return Sheet("accuracy in context, before and after", ["targets", "tasks", "shots", *MEASURED], lines)


def _bounded(row: Row, key: str) -> str:
    return f"{row[key]:.3f} ({row[f'{key}_low']:.2f} to {row[f'{key}_high']:.2f})"


def curve_panels(rows: Sequence[Row], name: str = "") -> list[Panel]:
    """Accuracy by shots of each group, before and after, with bands."""
    made = []
    for group in dict.fromkeys(str(row["group"]) for row in rows):
        mine = sorted((row for row in rows if row["group"] == group), key=lambda row: row["shots"])
        shots = [float(row["shots"]) for row in mine]
        lines = [(key, shots, [row[key] for row in mine]) for key in ("before", "after")]
        bands = [([row[f"{key}_low"] for row in mine], [row[f"{key}_high"] for row in mine])
                 for key in ("before", "after")]  # fmt: skip
        made.append(Panel(f"{name}: {group}" if name else group, "demonstrations", "accuracy", lines, bands))
    return made


def metaicl_panels(stages: Sequence[StageRun]) -> list[Panel]:
    """The curves of every stage that has them."""
    found = [(s, mappings(s.summary.get("groups"))) for s in stages if s.kind == "metaicl"]
    return [panel for stage, rows in found for panel in curve_panels(rows, stage.name)]


def save_curve(folder: Path, rows: Sequence[Row]) -> None:
    """Write figures/accuracy.png into a run directory."""
    save_figure(folder, "accuracy", curve_panels(rows))
