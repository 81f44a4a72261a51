"""Shared fixtures: the folder of real data."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder named by TUTELAGE_DATA; without it a test skips, and with CI=true it fails."""
    named = os.environ.get("TUTELAGE_DATA")
    if not named or not Path(named).is_dir():
        message = "TUTELAGE_DATA does not name the folder of real data"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    return Path(named)
