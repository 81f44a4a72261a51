"""The study of instruction tuning: held-out accuracy and loss against the number of training templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tutelage.report.plots import Panel
from tutelage.report.read import Sheet

Cell = Mapping[str, Any]
LEVELS = ("majority", "chance")


def curve_panels(cells: Sequence[Cell]) -> list[Panel]:
    """Accuracy and loss with their intervals, a line a cluster; of accuracy also the commonest label's and chance."""
    clusters = list(dict.fromkeys(cell["cluster"] for cell in cells))
    made = []
    for key, label in (("accuracy", "right label ranked first"), ("loss", "nats a token of the right answer")):
        lines, bands = [], []
        for cluster in clusters:
            mine = [cell for cell in cells if cell["cluster"] == cluster and key in cell]
            x = [float(cell["training_templates"]) for cell in mine]
            levels = LEVELS if key == "accuracy" else ()
            for name, low, high in ((key, f"{key}_low", f"{key}_high"), *((level, level, level) for level in levels)):
                if mine:
                    lines.append((cluster if name == key else f"{cluster}: {name}", x, [c[name] for c in mine]))
                    bands.append(([c[low] for c in mine], [c[high] for c in mine]))
        if lines:
            made.append(Panel(f"held-out clusters: {key}", "training templates", label, lines, bands, "doubling"))
    return made


def study_sheet(summary: Mapping[str, Any]) -> Sheet | None:
    """The study's table: a row a cluster and number of training templates. None for other summaries."""
    if summary.get("study") != "instruction tuning":
        return None
    columns = ["cluster", "tuned on", "accuracy", "95%", "by token", "majority", "nats", "95%"]
    rows = []
    for cell in sorted(summary["cells"], key=lambda c: (c["cluster"], c["training_templates"])):
        rows.append([
            cell["cluster"], str(cell["training_templates"]), _text(cell, "accuracy"), _between(cell, "accuracy"),
            _text(cell, "accuracy_by_token"), _text(cell, "majority"), _text(cell, "loss"), _between(cell, "loss"),
        ])  # fmt: skip
    title = "held-out clusters by number of training templates; nats: a token of the right answer"
    return Sheet(title, columns, rows)


def _text(cell: Cell, key: str) -> str:
    return f"{cell[key]:.3f}" if key in cell else ""


def _between(cell: Cell, key: str) -> str:
    return f"{cell[f'{key}_low']:.2f}..{cell[f'{key}_high']:.2f}" if key in cell else ""
