"""People who rank, each a process of its own that keeps its own list of what was acknowledged. Run as
`annotators.py URL BATCH FOLDER PERSON...`; each process group may be killed at any time and started again.

A person's log, FOLDER/PERSON.jsonl, has a line with the whole submission before it is sent (what a client would send
again after a crash) and a line with the store's answer after it came; both are fsynced.
"""

import json
import os
import random
import sys
import time
import uuid
from pathlib import Path

from tutelage.core.errors import RunError
from tutelage.feedback.store import Store


class Log:
    """Lines that are on the disk when `add` returns; a half line of an earlier life is cut off."""

    def __init__(self, path):
        whole = path.read_bytes().rpartition(b"\n") if path.exists() else (b"", b"", b"")
        self.lines = [json.loads(line) for line in whole[0].splitlines()]
        self.file = open(path, "r+b" if path.exists() else "w+b")
        self.file.seek(len(whole[0] + whole[1]))
        self.file.truncate()

    def add(self, **line):
        self.file.write(json.dumps(line).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())


def annotate(url, batch, person, folder):
    store, log = Store(url), Log(folder / f"{person}.jsonl")
    acknowledged = {line["acknowledged"] for line in log.lines if "acknowledged" in line}
    for line in log.lines:
        if "token" in line and line["token"] not in acknowledged:
            send(store, log, line)
    while item := patiently(lambda: store.next_item(batch, person)):
        ids = [answer.id for answer in item.answers]
        random.shuffle(ids)
        submission = {"token": uuid.uuid4().hex, "person": person, "item": item.id, "groups": [ids[:1], ids[1:]]}
        log.add(**submission)
        send(store, log, submission)
    log.add(finished=True)


def send(store, log, line):
    said = patiently(
        lambda: store.record(line["person"], line["item"], "ranking", line["groups"], token=line["token"])
    )
    log.add(acknowledged=line["token"], judgement=said.id)


def patiently(ask):
    """A server that was killed is back after some seconds; a client then asks again."""
    for left in reversed(range(200)):
        try:
            return ask()
        except RunError:
            if not left:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    url, batch, folder, *people = sys.argv[1:]
    children = []
    for person in people:
        children.append(os.fork())
        if not children[-1]:
            code = 1
            try:
                annotate(url, batch, int(person), Path(folder))
                code = 0
            finally:
                os._exit(code)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
