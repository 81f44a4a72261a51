"""One browser for the tests of the pages."""

import pytest

from tests.serve.pages import chromium


@pytest.fixture(scope="session")
def browser():
    """The system's Chromium; without one a test skips and says so."""
    with chromium() as found:
        yield found
