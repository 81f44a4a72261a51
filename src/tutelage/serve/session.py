"""Who one is on the pages: /session tells, enters with a key, joins under a new name where that is allowed, and leaves.

The cookie holds the person's key and no script can read it. A name that exists needs its key: nobody writes under
another's name.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tutelage.feedback.store import Person, Store
from tutelage.serve.access import COOKIE, person, remember
from tutelage.serve.errors import ApiError


class Enter(BaseModel):
    """A key, or a new name; one of the two."""

    model_config = ConfigDict(extra="forbid")

    key: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    name: Annotated[str, Field(min_length=1, max_length=100)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Enter:
        if (self.key is None) == (self.name is None):
            raise ValueError("expected a key or a name")
        return self


def told(who: Person | None) -> dict[str, Any] | None:
    """A person as the pages know them."""
    return None if who is None else {"id": who.id, "name": who.name}


def may_join(request: Request) -> bool:
    """Whether one may take a new name by oneself: on the server's own machine, where it asks for no keys."""
    state = request.app.state
    return bool(state.store is not None and state.local and state.keys is None)


def router() -> APIRouter:
    """The routes of /session."""
    routes = APIRouter(prefix="/session", tags=["session"])

    @routes.get("")
    def who(request: Request) -> dict[str, Any]:
        """The person that the cookie names, or null; whether one may join under a new name."""
        return {"person": told(person(request)), "join": may_join(request)}

    @routes.post("")
    def enter(body: Enter, request: Request, response: Response) -> dict[str, Any]:
        """Enter with a key, or join under a new name; joining gives the key, this once."""
        store: Store | None = request.app.state.store
        if store is None:
            raise ApiError(404, "this server has no store, so nobody is known; start it with store=labels.db")
        key, joined = body.key, {}
        if body.name is not None:
            if not may_join(request):
                raise ApiError(403, "a new name needs a key from whoever runs this server", "name", "key_needed")
            if store.person_named(body.name) is not None:
                words = f"the name {body.name!r} is taken; enter with its key, or choose another name"
                raise ApiError(409, words, "name", "name_taken")
            key = store.add_person(body.name)
            joined = {"key": key}
        assert key is not None
        found = store.person_of(key)
        if found is None:
            raise ApiError(403, "the key is not known here", "key", "invalid_key")
        remember(response, key, secure=request.url.scheme == "https")
        return {"person": told(found), **joined}

    @routes.delete("")
    def leave(response: Response) -> dict[str, Any]:
        """Forget who one is in this browser."""
        response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
        return {"person": None}

    return routes
