"""tutelage: raw text to chat assistant, every step measured. Importing it loads neither torch nor transformers."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["LocalEngine", "RemoteEngine", "SamplingParams", "TutelageError", "load", "run"]


def __getattr__(name: str) -> Any:
    if name == "TutelageError":
        from tutelage.core.errors import TutelageError

        return TutelageError
    if name in ("load", "LocalEngine", "RemoteEngine", "SamplingParams"):
        from tutelage import engine

        return getattr(engine, name)
    if name == "run":
        from tutelage.pipeline import run

        return run
    raise AttributeError(f"module 'tutelage' has no attribute {name!r}")
