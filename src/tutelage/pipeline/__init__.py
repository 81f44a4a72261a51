"""Stages by name, and recipes that chain them."""

from __future__ import annotations

from tutelage.pipeline.recipe import run_recipe
from tutelage.pipeline.stages import STAGES, run

__all__ = ["STAGES", "run", "run_recipe"]
