"""Where lm-eval is not installed, the plug-in says what to install."""

from __future__ import annotations

import sys

import pytest

from tutelage.lm_eval.__main__ import main


def test_the_message_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # an import then fails as for an absent package
    with pytest.raises(SystemExit, match=r"pip install 'tutelage\[eval\]'"):
        main()
