"""Hostile requests and schemathesis: nothing crashes, nothing answers 5xx, and the server answers after it all."""

from __future__ import annotations

import concurrent.futures
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from tests.serve import hostile
from tests.serve.conftest import Running, make_engine, post, running, until
from tutelage.serve.app import create_app
from tutelage.serve.limits import Limits


@pytest.fixture(scope="module")
def target() -> Iterator[Running]:
    limits = Limits(
        body_bytes=200_000, body_seconds=0.5, header_seconds=0.5, send_seconds=1, seconds=5, max_tokens=64, n=8
    )
    with running({"tiny": make_engine()}, limits) as server:
        yield server


@pytest.fixture(scope="module")
def roomy() -> Iterator[Running]:
    """Bodies as large as schemathesis makes them: 413 is no refusal of what is in them."""
    with running({"tiny": make_engine()}, Limits(body_bytes=64 << 20, max_tokens=64, n=8)) as server:
        yield server


def test_hostile_requests(target: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = Counter(pool.map(lambda seed: hostile.attack(target.port, seed), range(400)))
    assert not [status for status in found if status >= 500], found
    assert found[200] and found[400] and found[413] and found[404], found
    assert not caplog.records, caplog.text
    until(lambda: not target.desk.asks)
    until(lambda: not target.server.server_state.connections)
    assert target.desk.engine._scheduler.used() == 0
    assert post(target, "/v1/completions", {"prompt": "one", "max_tokens": 2}).status_code == 200


def document() -> Any:
    return schemathesis.openapi.from_dict(create_app({}).openapi())


schema = document()
CHECKS = [
    check for check in schemathesis.checks.load_all_checks() or schemathesis.checks.CHECKS.get_all()
    # a request may be well formed and still be refused: an unknown model, a prompt that does not fit, more than allowed
    if check.__name__ not in ("positive_data_acceptance",)
]  # fmt: skip


@schema.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_the_server_keeps_to_its_document(case: Any, roomy: Running) -> None:
    if isinstance(case.body, dict):  # or random prompts' answers would take the time
        case.body.setdefault("max_tokens", 3)
    response = case.call(base_url=roomy.url, timeout=30)
    case.validate_response(response, checks=CHECKS)
