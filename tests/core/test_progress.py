"""Progress: on a log file a line now and then with speed and time left, on a terminal a bar that goes away."""

import io

import pytest
from rich.console import Console

from tutelage.core import progress
from tutelage.core.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_a_log_gets_few_lines(monkeypatch, clock):
    out = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=out, highlight=False))
    with Progress("prepare train", "documents", 1000) as shown:
        for _ in shown.over(range(1000)):
            clock[0] += 0.1
    lines = out.getvalue().splitlines()
    assert len(lines) == 3  # 100 seconds, a line every 30
    assert lines[0] == "prepare train 300/1,000 documents  10 documents/s  ETA 70s"


def test_bytes_of_a_corpus_and_unknown_totals(monkeypatch, clock):
    out = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=out, highlight=False))
    with Progress("rank", "prompts", every=0.0) as shown:
        clock[0] += 2
        shown.add(3)
    with Progress("prepare", "MB", 4.0, count=lambda: 1.0, every=0.0) as shown:
        clock[0] += 2
        assert list(shown.over("x")) == ["x"]
    assert out.getvalue().splitlines() == [
        "rank 3.0 prompts  1.5 prompts/s  ETA unknown", "prepare 1.0/4.0 MB  0.5 MB/s  ETA 6s",
    ]  # fmt: skip


def test_a_terminal_gets_a_bar(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=out, force_terminal=True, width=100))
    with Progress("rank", "prompts", 10, every=0.0) as shown:
        shown.add(4)
        shown._bars.refresh()
    assert "rank" in out.getvalue() and "4.0/10.0 prompts" in out.getvalue()
