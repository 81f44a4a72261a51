"""Errors a user can act on: each message names the file, line, key or value, and the fix."""

from __future__ import annotations


class TutelageError(Exception):
    """Base of every error that is the input's fault, not the program's; the CLI prints it without a traceback."""


class ConfigError(TutelageError):
    """A configuration key or value is wrong."""


class DataError(TutelageError):
    """A data file is missing, broken, empty, or does not fit the tokenizer."""


class RunError(TutelageError):
    """A run directory is in use, unfinished, from another configuration, or cannot be written."""


class DivergedError(RunError):
    """The training was no longer sound (not finite, or a spike), and its guard stopped it; what was sound is saved."""


class RewardError(TutelageError):
    """A reward function raised, or returned something that is not one finite number per completion."""


class Interrupted(RunError):
    """Ctrl-C or SIGTERM: what can be saved was saved; the same command goes on."""


def in_words(problem: BaseException) -> str:
    """An error as a message tells it: ours as it is, anybody else's with its type."""
    return str(problem) if isinstance(problem, TutelageError) else f"{type(problem).__name__}: {problem}"
