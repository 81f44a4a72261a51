"""Reports on finished or unfinished runs. Reads run directories only: no model, no torch."""

from tutelage.report.console import runs_tree, stage_table
from tutelage.report.html import write_report

__all__ = ["runs_tree", "stage_table", "write_report"]
