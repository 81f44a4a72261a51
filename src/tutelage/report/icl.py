"""In-context learning's table and plot: a sweep's cells with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from tutelage.report.plots import plain

Cell = Mapping[str, Any]
COLUMNS = (
    "shots", "select", "order", "score", "norm", "calibrate", "condition", "format", "instruction", "instructions",
    "chat", "method", "read", "demos",
)  # fmt: skip


def sweep_table(cells: Sequence[Cell]) -> Table:
    """One row a cell; settings that are the same in all cells stand in the title alone."""
    varied = [key for key in ("task", *COLUMNS) if len({str(cell.get(key)) for cell in cells}) > 1]
    kept = [key for key in ("task", *COLUMNS) if key not in varied and cells[0].get(key) not in ("", None)]
    same = [f"{key}={cells[0][key]}" for key in kept]
    table = Table(title=Text("  ".join(same)), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in (*varied, "acc", "95%", "worst", "F1", "ECE", "n", "saved", "s"):
        table.add_column(name, justify="left" if name in varied else "right", no_wrap=name not in varied)
    for cell in cells:
        table.add_row(*[Text(text) for text in _texts(cell, varied)])
    if found := found_instructions(cells):
        table.caption, table.caption_justify = Text("\n".join(found)), "left"
    return table


def found_instructions(cells: Sequence[Cell]) -> list[str]:
    """A line for each instruction that was searched: by what, on which seed, its score among how many, and its text."""
    lines = [
        f"{cell['task']}, {cell['instructions']}, seed {one['seed']}: {one['instruction']!r} "
        f"(score {_number(one['score'])}, best of {one['candidates']})"
        for cell in cells
        for one in cell.get("searched", ())
    ]
    return list(dict.fromkeys(lines))


def _texts(cell: Cell, varied: Sequence[str]) -> list[str]:
    saved = f"{cell['asked'] / cell['computed']:.1f}x" if cell.get("computed") else ""
    return [
        *(str(cell.get(key, "")) for key in varied), f"{cell['accuracy']:.3f}",
        f"{cell['low']:.2f}..{cell['high']:.2f}", f"{cell['worst']:.3f}",
        _number(cell.get("macro_f1")), _number(cell.get("ece")),
        f"{cell['n']}x{cell['seeds']}", saved, f"{cell['seconds']:.1f}",
    ]  # fmt: skip


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else ""


def draw_sweep(folder: Path, cells: Sequence[Cell], swept: Sequence[str]) -> Path | None:
    """accuracy.png: accuracy with intervals; over a swept number as lines, else as bars. None for a single cell.

    swept: the keys that had lists. The first numeric one is the axis (else the last); the others make the lines.
    """
    if len(cells) < 2 or not swept:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    numeric = [key for key in swept if all(type(cell[key]) in (int, float) for cell in cells)]
    axis = numeric[0] if numeric else swept[-1]
    others = [key for key in swept if key != axis]
    lines: dict[str, list[Cell]] = {}
    for cell in cells:
        label = ", ".join(str(cell[key]) if key == "task" else f"{key}={cell[key]}" for key in others)
        lines.setdefault(label, []).append(cell)
    names = list(dict.fromkeys(str(cell[axis]) for cell in cells))
    figure = Figure(figsize=(max(5.0, 0.55 * len(names) * max(1, len(lines) / 2) + 2), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (label, row) in enumerate(lines.items()):
        values = [c["accuracy"] for c in row]
        bounds = [[v - c["low"] for v, c in zip(values, row)], [c["high"] - v for v, c in zip(values, row)]]
        bounds = [[max(0.0, b) for b in side] for side in bounds]
        if numeric:
            axes.errorbar([c[axis] for c in row], values, yerr=bounds, marker="o", capsize=3, label=plain(label))
        else:
            width = 0.8 / len(lines)
            at = [names.index(str(c[axis])) + (number - (len(lines) - 1) / 2) * width for c in row]
            axes.bar(at, values, width, yerr=bounds, capsize=2, label=plain(label))
    if not numeric:
        many = len(names) > 4
        labels = [plain(n[:24]) for n in names]
        axes.set_xticks(range(len(names)), labels, rotation=35 if many else 0, ha="right" if many else "center")
    axes.set(xlabel=axis, ylabel="accuracy", ylim=(0, 1))
    axes.grid(alpha=0.25, axis="y")
    if others:
        axes.legend(fontsize=8, frameon=False)
    path = folder / "accuracy.png"
    with path.with_name(".accuracy.png").open("wb") as file:
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    path.with_name(".accuracy.png").replace(path)
    return path
