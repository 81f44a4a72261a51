"""Parameters and training data of published models over the years, as lines and a figure."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from tutelage.report.plots import HEIGHT, WIDTH

Row = Mapping[str, Any]
KINDS = {"decoder": ("o", "#1f77b4"), "masked LM": ("s", "#d62728"), "encoder-decoder": ("^", "#2ca02c")}


def growth_table(rows: Sequence[Row]) -> list[str]:
    """Lines: year, parameters published and computed, training tokens, FLOPs and shape of each model."""
    lines = [f"{'model=preset:':14} year {'published':>9} {'computed':>17} {'tokens':>7} {'FLOPs':>8}  shape"]
    for row in rows:
        tokens = f"{row['tokens'] / 1e9:.0f}B" if row["tokens"] else "-"
        flops = f"{row['flops']:.1e}" if row["flops"] else "-"
        equal = "=" if row["agrees"] else "!"
        lines.append(
            f"{row['model']:14} {int(row['year'])} {row['parameters']:>9} {equal}{row['computed']:>16,} {tokens:>7} "
            f"{flops:>8}  {row['shape']}"
        )
    return lines


def growth_png(rows: Sequence[Row]) -> bytes:
    """PNG: parameters, training tokens, text and FLOPs by year, logarithmic, one mark a model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {"computed": "parameters", "tokens": "training tokens", "text_gb": "training text, GB",
              "flops": "training FLOPs"}  # fmt: skip
    figure = Figure(figsize=(WIDTH * 2, HEIGHT * 2.4), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (key, label) in enumerate(panels.items()):
        axes = figure.add_subplot(2, 2, number + 1)
        for kind, (mark, colour) in KINDS.items():
            known = [row for row in rows if row["kind"] == kind and row[key]]
            axes.plot([r["year"] for r in known], [r[key] for r in known], mark, color=colour, label=kind, alpha=0.8)
            _name_the_largest(axes, known, key)
        axes.set(yscale="log", ylabel=label, xlabel="year", xlim=(2018, 2024.4))
        axes.grid(alpha=0.25)
        if not number:
            axes.legend(fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _name_the_largest(axes: Any, rows: Sequence[Row], key: str) -> None:
    """Words beside the largest model of each release: the sizes of one release stand above one another."""
    largest = {row["year"]: row for row in sorted(rows, key=lambda row: row[key])}
    for year, row in largest.items():
        axes.annotate(row["model"], (year, row[key]), fontsize=7, xytext=(4, 4), textcoords="offset points")
