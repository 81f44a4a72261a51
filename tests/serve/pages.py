"""What the tests of the ranking page share: answers to rank, a page over them, and a client without a browser."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.serve.conftest import running
from tutelage.feedback.store import Store

SCRIPT = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
ARABIC = "ما هي عاصمة مصر؟"
ROWS = [
    {"prompt": "who has the ball? max has the ball.", "responses": ["sure! max.", "ray.", "go away.", "max"]},
    {"prompt": SCRIPT, "responses": [f"{SCRIPT} one", "two", "three"]},
    {"prompt": "请用一句话介绍长江。", "responses": ["长江是中国最长的河流。", "长江很长。", "我不知道。"]},
    {"prompt": ARABIC, "responses": ["القاهرة هي عاصمة مصر.", "الإسكندرية", "لا أعرف.", "Cairo."]},
    {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."},
                {"role": "assistant", "content": "Blue."}, {"role": "user", "content": "Another one."}],
     "responses": ["Green.", "Blue.", "The sky, on a clear day in early autumn, can be a deep azure.\n\nOr green."]},
    {"prompt": "what is two plus two?", "responses": ["four", "five"]},
]  # fmt: skip


@contextmanager
def labelling(path: Any, rows: Any = ROWS, batch: str | None = None, **settings: Any) -> Iterator[tuple[str, Store]]:
    """Within: the ranking page over a new store at `path`; gives its address and the store."""
    store = Store(str(path))
    guidelines = "# Be fair\n\nPut the *true* answer first."
    store.add_batch("colours", **{"guidelines": guidelines, "overlap": 1.0, **settings})
    store.add_items("colours", rows)
    with running({}, store=store, batch=batch) as server:
        yield server.url, store
    store.close()


class Client:
    """Somebody who speaks to the server without a browser; keeps the cookie."""

    def __init__(self, address: str, **headers: str) -> None:
        self.address, self.headers = address, headers
        self.cookie = ""

    def __call__(self, path: str, body: Any = None, method: str | None = None, **headers: str) -> tuple[int, Any]:
        """(status, JSON) of a GET, or of a POST of `body`."""
        data = None if body is None else json.dumps(body).encode()
        wanted = {"Content-Type": "application/json", **({"Cookie": self.cookie} if self.cookie else {})}
        request = urllib.request.Request(
            self.address + path, data, {**wanted, **self.headers, **headers}, method=method
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                if given := answer.headers.get("Set-Cookie"):
                    self.cookie = given.split(";", 1)[0]
                    self.flags = given
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as problem:
            return problem.code, json.load(problem)

    def join(self, name: str) -> dict[str, Any]:
        """Take a new name."""
        status, found = self("/session", {"name": name})
        assert status == 200, found
        self.person = found["person"]
        return found

    def rank(self, by: Any = len) -> dict[str, Any] | None:
        """Rank the next item by a key of its texts; None when nothing is left."""
        item = self("/label/api/next")[1]["item"]
        if item is None:
            return None
        order = sorted(item["answers"], key=lambda answer: by(answer["text"]))
        said = {"item": item["id"], "person": self.person["id"], "kind": "ranking", "token": f"item {item['id']}",
                "groups": [[answer["id"]] for answer in order], "seconds": 3.5}  # fmt: skip
        status, found = self("/label/api/judgements", said)
        assert status == 200, found
        return found
