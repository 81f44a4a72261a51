"""lm-eval's own command line, which then knows ``--model tutelage``."""

from __future__ import annotations

import sys

from tutelage.core.errors import TutelageError

MISSING = "lm-eval is not installed; install it with: pip install 'tutelage[eval]' (or pip install lm_eval==0.4.13)"


def main() -> None:
    """Register our model, then run lm-eval on ``sys.argv``. Exits with a message where lm-eval is not installed."""
    try:
        import lm_eval.models  # noqa: F401  the registry of lm-eval's own models, which is filled once
        from lm_eval.__main__ import cli_evaluate
    except ModuleNotFoundError as error:
        raise SystemExit(f"error: {MISSING} [{error}]") from None
    from tutelage.lm_eval import model  # noqa: F401  registers "tutelage"

    try:
        cli_evaluate()
    except TutelageError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
