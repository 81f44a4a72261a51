"""The tables that a run directory has beside its numbers, for the report and the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from tutelage.report.instruction import study_sheet
from tutelage.report.metaicl import before_after_sheet
from tutelage.report.read import Sheet, read_json
from tutelage.report.reward import curve_sheet, read_report, sheets


def folder_sheets(folder: Path) -> list[Sheet]:
    """The sheets of a run directory: of a reward model's report, of studies, of in-context training."""
    summary = read_json(folder / "summary.json")
    own = (curve_sheet(summary), study_sheet(summary), before_after_sheet(summary))
    return [*sheets(read_report(folder)), *(sheet for sheet in own if sheet)]


def console_tables(folder: Path) -> list[Table]:
    """The sheets of a run directory for the terminal."""
    out = []
    for sheet in folder_sheets(folder):
        table = Table(title=sheet.title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for number, name in enumerate(sheet.columns):
            table.add_column(name, justify="right" if number else "left", no_wrap=number > 0)
        for row in sheet.rows:
            table.add_row(*map(Text, row))
        out.append(table)
    return out
