"""What the ranking page asks for: the next item, what one said before, handing a judgement in, and the agreement.

Who ranks is whoever the session cookie names, never what a request says. Where an answer came from is not told, and
the order in which a person sees an item's answers is random, the same at every look, and recorded.
"""

from __future__ import annotations

import random
import threading
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from tutelage.core.runtime import stream_seed
from tutelage.feedback.store import CHAT, BatchInfo, Item, Judgement, Person, Progress, Store
from tutelage.serve.access import require_person
from tutelage.serve.errors import ApiError
from tutelage.text.chat import as_messages

REPORT_SECONDS = 5.0
"""A report is computed at most so often: its intervals cost a second, and several people may watch it."""
Number = Annotated[int, Field(gt=0, lt=1 << 63)]
Text = Annotated[str, Field(max_length=100_000)]


class Body(BaseModel):
    """A request: what it does not know is refused by name."""

    model_config = ConfigDict(extra="forbid", strict=True)


class JudgementRequest(Body):
    """What a person says of an item."""

    item: Number
    person: Number
    """Who the page believes to be signed in: refused where it is somebody else by now, in another tab, say."""
    kind: Literal["ranking", "all_bad", "skip"]
    groups: Annotated[list[list[Number]], Field(max_length=1000)] = []
    """Ids of answers, the best group first; a group is a tie."""
    flags: Annotated[list[str], Field(max_length=20)] = []
    comment: Annotated[str, Field(max_length=20_000)] = ""
    seconds: Annotated[float, Field(ge=0, le=1e7, strict=False)] = 0.0
    token: Annotated[str, Field(min_length=1, max_length=200)]
    """The page's own id of this submission: sent twice it is one."""


class DemonstrationRequest(Body):
    """An ideal answer to an item's prompt, written anew or from one of its answers."""

    item: Number
    answer: Annotated[Text, Field(min_length=1)]
    edited_from: Number | None = None


def router(app: FastAPI) -> APIRouter:
    """The routes under /label/api; `app` has a store. `app.state.sampling`, if set, is what adds items meanwhile."""
    routes = APIRouter(prefix="/label/api", tags=["ranking page"])
    _asked(routes, app)
    _given(routes, app)
    _told(routes, app)
    return routes


def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


def _batches(request: Request) -> list[BatchInfo]:
    """Those that the page shows: the one that the server was told, else all but the chat page's votes, whose prompts
    are people's own."""
    only = request.app.state.batch
    known = [info for info in _store(request).batches() if info.name == only or (only is None and info.name != CHAT)]
    if not known:
        words = f"the store has no batch {only!r}" if only else "the store has no batch"
        raise ApiError(404, f"{words} yet; add answers with tutelage label answers.jsonl", code="no_batch")
    return known


def _batch(request: Request, batch: Annotated[str | None, Query(max_length=200)] = None) -> BatchInfo:
    """The batch that a request names, or the first."""
    known = _batches(request)
    for info in known:
        if batch is None or info.name == batch:
            return info
    raise ApiError(404, f"no batch {batch!r}; there are: {', '.join(info.name for info in known)}", "batch", "no_batch")


Kept = Annotated[Store, Depends(_store)]
Known = Annotated[Person, Depends(require_person)]
Chosen = Annotated[BatchInfo, Depends(_batch)]


def _asked(routes: APIRouter, app: FastAPI) -> None:
    """What is to be done."""

    @routes.get("/state")
    def state(request: Request, store: Kept, who: Known, batch: Chosen) -> dict[str, Any]:
        """The batch with its guidelines, the other batches, progress, sampling, and whether there is a chat page."""
        return {
            "batch": {"name": batch.name, "guidelines": batch.guidelines, "items": batch.items},
            "batches": [info.name for info in _batches(request)],
            "progress": _progress(store.progress(batch.name, who.id)),
            "sampling": _sampling(app),
            "chat": bool(app.state.models),
        }

    @routes.get("/next")
    def following(store: Kept, who: Known, batch: Chosen) -> dict[str, Any]:
        """The next item for this person, null when nothing is left for them."""
        item = store.next_item(batch.name, who.id)
        progress = _progress(store.progress(batch.name, who.id))
        return {"item": item and _item(item, who), "progress": progress, "sampling": _sampling(app)}

    @routes.get("/history")
    def history(
        store: Kept, who: Known, batch: Chosen, limit: Annotated[int, Query(ge=1, le=1000)] = 200
    ) -> dict[str, Any]:
        """What this person has said, newest first."""
        found = store.history(who.id, batch.name, limit)
        return {"judgements": [{"item": j.item, "kind": j.kind, "at": j.at.isoformat()} for j in found]}

    @routes.get("/items/{number}")
    def judged(number: Number, request: Request, store: Kept, who: Known) -> dict[str, Any]:
        """An item that this person has judged, with what they said."""
        item = _open_item(request, number)
        mine = next((j for j in store.history(who.id, item.batch, 1_000_000) if j.item == number), None)
        if mine is None:
            raise ApiError(404, f"you have not judged an item {number}", code="not_judged")
        return {**_item(item, who), "mine": _judgement(mine)}


def _given(routes: APIRouter, app: FastAPI) -> None:
    """What people hand in."""

    @routes.post("/judgements")
    def judge(body: JudgementRequest, request: Request, store: Kept, who: Known) -> dict[str, Any]:
        """Keep a judgement. It is on the disk when this answers; an earlier one of the same item is replaced by it."""
        if body.person != who.id:
            words = f"you are signed in as {who.name} by now, not as who began this page; load it again"
            raise ApiError(403, words, "person", "other_person")
        item = _open_item(request, body.item)
        kept = store.record(
            who.id, body.item, body.kind, body.groups, body.flags, body.comment, body.seconds,
            shown=shown_order(item, who), token=body.token,
        )  # fmt: skip
        return {**_judgement(kept), "progress": _progress(store.progress(item.batch, who.id))}

    @routes.post("/demonstrations")
    def demonstrate(body: DemonstrationRequest, request: Request, store: Kept, who: Known) -> dict[str, Any]:
        """Keep an ideal answer to an item's prompt: a row for supervised fine-tuning."""
        item = _open_item(request, body.item)
        texts = {answer.id: answer.text for answer in item.answers}
        if body.edited_from is not None and body.edited_from not in texts:
            words = f"answer {body.edited_from} is not one of item {item.id}'s"
            raise ApiError(400, words, "edited_from", "invalid_value")
        source = None if body.edited_from is None else texts[body.edited_from]
        origin = {"page": "label", "batch": item.batch, "item": item.id}
        return {"id": store.add_demonstration(who.id, item.prompt, body.answer, origin, source)}


def _told(routes: APIRouter, app: FastAPI) -> None:
    """The agreement."""
    reports = Reports()

    @routes.get("/report")
    def report(request: Request, store: Kept, who: Known, batch: Chosen) -> dict[str, Any]:
        """How far people agree on the batch. Other people have numbers here; the command line has their names."""
        numbers = {one.name: number for number, one in enumerate(store.people(), 1)}
        found = {key: value for key, value in reports.of(store, batch.name).items()}

        def named(line: dict[str, Any], key: str) -> dict[str, Any]:
            name = line[key]
            return {**{k: v for k, v in line.items() if k != key}, "number": numbers.get(name), "you": name == who.name}

        found["per_annotator"] = [named(line, "annotator") for line in found["per_annotator"]]
        found["people"] = [named(line, "name") for line in found["people"]]
        names = [info.name for info in _batches(request)]
        return {
            "batch": batch.name, "batches": names, "progress": _progress(store.progress(batch.name, who.id)),
            "chat": bool(app.state.models), "agreement": found,
        }  # fmt: skip


class Reports:
    """The last report of each batch, computed anew after REPORT_SECONDS, by one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[str, tuple[float, dict[str, Any]]] = {}

    def of(self, store: Store, batch: str) -> dict[str, Any]:
        """The report of a batch, REPORT_SECONDS old at most."""
        with self._lock:
            at, found = self._last.get(batch, (-REPORT_SECONDS, {}))
            if time.monotonic() - at >= REPORT_SECONDS:
                found = store.agreement(batch)
                self._last[batch] = (time.monotonic(), found)
            return found


def _open_item(request: Request, number: int) -> Item:
    """An item of a batch that the page shows, else 404."""
    item = _store(request).item(number)
    if item.batch not in [info.name for info in _batches(request)]:
        raise ApiError(404, f"no item {number} in this store", "item", "no_item")
    return item


def shown_order(item: Item, who: Person) -> list[int]:
    """The ids of an item's answers in the order in which a person sees them: random, and a function of the two, so that
    a page that is loaded again shows the same."""
    order = [answer.id for answer in item.answers]
    random.Random(stream_seed(0, "shown", item.id, who.id)).shuffle(order)
    return order


def _item(item: Item, who: Person) -> dict[str, Any]:
    texts = {answer.id: answer.text for answer in item.answers}
    return {
        "id": item.id,
        "prompt": as_messages({"prompt": item.prompt}),
        "answers": [{"id": number, "text": texts[number]} for number in shown_order(item, who)],
    }


def _judgement(one: Judgement) -> dict[str, Any]:
    return {
        "id": one.id, "item": one.item, "kind": one.kind, "groups": one.groups, "flags": one.flags,
        "comment": one.comment, "seconds": one.seconds, "at": one.at.isoformat(), "replaces": one.replaces,
    }  # fmt: skip


def _progress(found: Progress) -> dict[str, int]:
    return {"done": found.done, "total": found.total, "mine": found.mine, "left_for_me": found.left_for_me}


def _sampling(app: FastAPI) -> dict[str, Any] | None:
    """How far the sampling of new answers is, null where there is none."""
    sampler = getattr(app.state, "sampling", None)
    return None if sampler is None else sampler.state()
