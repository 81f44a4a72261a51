"""kill -9 while eight people rank: what was acknowledged is there, nothing is there twice, and the work goes on."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.feedback.annotators import Log
from tutelage.feedback.store import Store

PEOPLE = 8
SIZES = [(80, 1), pytest.param(1000, 5, marks=pytest.mark.real)]
SCRIPT = str(Path(__file__).with_name("annotators.py"))


def start(url, folder, people):
    words = [sys.executable, SCRIPT, url, "b", str(folder), *map(str, people)]
    return subprocess.Popen(words, start_new_session=True)


def acknowledged(folder):
    return sum(file.read_bytes().count(b"acknowledged") for file in folder.glob("*.jsonl"))


def until(folder, number, process):
    """Wait for so many acknowledged rankings, then a few milliseconds more, so that the kill falls anywhere."""
    end = time.time() + 120
    while acknowledged(folder) < number and time.time() < end:
        assert process.poll() is None, "the annotators ended too early"
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.02))


def kill(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def check(url, folder, people, rankings):
    """What is in the store against what the people wrote down."""
    store = Store(url)
    stored = {}
    for person in people:
        for said in store.history(person, "b", limit=10**6):
            assert said.replaces is None and (said.item, person) not in stored
            stored[said.item, person] = said
    sent, seen = {}, []
    for person in people:
        lines = Log(folder / f"{person}.jsonl").lines
        sent.update({line["token"]: line for line in lines if "token" in line})
        seen += [(line["acknowledged"], line["judgement"]) for line in lines if "acknowledged" in line]
    for token, number in seen:
        line = sent[token]
        said = stored[line["item"], line["person"]]
        assert said.id == number and said.groups == tuple(tuple(sorted(group)) for group in line["groups"])
    store.close()
    assert len(seen) == len(dict(seen))
    assert set(stored) <= {(line["item"], line["person"]) for line in sent.values()}
    if rankings is not None:
        assert len(stored) == len(seen) == len(sent) == rankings
        assert set(Counter(item for item, _ in stored).values()) == {2}


def campaign(url, folder, rankings, kills, server=None):
    """Rank to the end through `kills` kills of the people and, where there is a server of the tests, of that too."""
    folder.mkdir(exist_ok=True)
    store = Store(url)
    store.add_batch("b", per_item=2, overlap=0)
    store.add_items("b", [{"prompt": f"q{n}", "responses": ["x", "y", "z"]} for n in range(rankings // 2)])
    people = [store.person_of(store.add_person(f"p{n}")).id for n in range(PEOPLE)]
    store.close()
    for number in range(kills):
        process = start(url, folder, people)
        until(folder, rankings * (number + 1) // (kills + 1), process)
        if server is not None and number % 2 == 0:
            server.kill()
            server.start()
            until(folder, acknowledged(folder) + 1, process)
        kill(process)
        check(url, folder, people, None)
    assert start(url, folder, people).wait(300) == 0
    check(url, folder, people, rankings)


@pytest.mark.parametrize("rankings, kills", SIZES)
def test_acknowledged_rankings_survive_in_a_file(tmp_path, rankings, kills):
    campaign(str(tmp_path / "labels.db"), tmp_path / "logs", rankings, kills)


@pytest.mark.parametrize("rankings, kills", SIZES)
def test_acknowledged_rankings_survive_on_a_server(safe_postgres, tmp_path, rankings, kills):
    campaign(safe_postgres.new_url(), tmp_path / "logs", rankings, kills, safe_postgres)
