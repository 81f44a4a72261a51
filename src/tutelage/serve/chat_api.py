"""What the chat page asks for beside /v1: what is served, scores, and what people give (votes, ideal answers, prompts).

Answers themselves come from /v1, as any client gets them. Nothing here keeps a conversation: a prompt is stored when
its author says so, with a vote, an ideal answer, or the consent switch, and never otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tutelage.feedback.store import Person, Store
from tutelage.serve.access import person, require_key, require_person
from tutelage.serve.errors import ApiError
from tutelage.text.chat import fit_messages, talks
from tutelage.train.rewards import call_reward

Text = Annotated[str, Field(max_length=100_000)]


class Body(BaseModel):
    """A request: what it does not know is refused by name."""

    model_config = ConfigDict(extra="forbid")


class Turn(Body):
    """A message."""

    role: Literal["system", "user", "assistant"]
    content: Text


class Prompt(Body):
    """What was asked: the conversation up to and with the user's message."""

    prompt: list[Turn] = Field(min_length=1, max_length=1000)

    @model_validator(mode="after")
    def _asked(self) -> Prompt:
        if self.prompt[-1].role != "user":
            raise ValueError(f"the prompt ends with the {self.prompt[-1].role}'s message, expected the user's")
        return self

    def asked(self) -> str | list[dict[str, str]]:
        """As the store keeps it: a lone question as a string, else messages."""
        if len(self.prompt) == 1:
            return self.prompt[0].content
        return [{"role": turn.role, "content": turn.content} for turn in self.prompt]


class FitRequest(Body):
    """A conversation to shorten for a model."""

    model: str
    messages: list[Turn] = Field(min_length=1, max_length=1000)
    max_tokens: int = Field(ge=1)


class RewardRequest(Prompt):
    """Answers to score."""

    answers: list[Text] = Field(min_length=1, max_length=16)


class Origin(Body):
    """Where an answer came from."""

    model: Annotated[str, Field(max_length=500)]
    params: dict[str, Any] = {}


class VotedAnswer(Body):
    """An answer that was voted on."""

    text: Text
    origin: Origin


class VoteRequest(Prompt):
    """A vote between answers: `winner` is an index into them, for kind "winner" alone."""

    answers: list[VotedAnswer] = Field(min_length=2, max_length=4)
    kind: Literal["winner", "tie", "all_bad"]
    winner: int | None = None
    shown: list[int] = []
    seconds: float = Field(0.0, ge=0, le=86_400)
    token: Annotated[str, Field(min_length=1, max_length=100)] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> VoteRequest:
        count = len(self.answers)
        if (self.kind == "winner") != (self.winner is not None):
            raise ValueError(f"kind {self.kind!r} with winner {self.winner}: a winner has an index, the others none")
        if self.winner is not None and not 0 <= self.winner < count:
            raise ValueError(f"winner {self.winner}: expected 0..{count - 1}")
        if self.shown and sorted(self.shown) != list(range(count)):
            raise ValueError(f"shown {self.shown}: expected each of 0..{count - 1} once")
        return self


class DemonstrationRequest(Prompt):
    """An ideal answer, written or edited by a person."""

    answer: Annotated[str, Field(min_length=1, max_length=100_000)]
    origin: Origin | None = None
    edited_from: Text | None = None


class PromptRequest(Prompt):
    """A prompt that its author lets the project keep."""

    consent: bool


def router(app: FastAPI) -> APIRouter:
    """The routes under /chat/api, over the application's models, reward functions and store."""
    routes = APIRouter(prefix="/chat/api", tags=["chat page"])
    _about(routes, app)
    _given(routes)
    return routes


def _about(routes: APIRouter, app: FastAPI) -> None:
    """What is served, and scores."""
    may_ask = [Depends(require_key)]

    @routes.get("/state", dependencies=may_ask)
    def state(request: Request) -> dict[str, Any]:
        """What the page may offer."""
        found = person(request)
        told = {
            name: {
                "talks": talks(name, getattr(engine, "tokenizer", None)),
                "context": getattr(engine, "context_length", None),
            }
            for name, engine in app.state.models.items()
        }
        return {
            "models": told,
            "rewards": list(app.state.rewards),
            "store": app.state.store is not None,
            "person": None if found is None else {"name": found.name},
        }

    @routes.post("/fit", dependencies=may_ask)
    def fit(body: FitRequest) -> dict[str, Any]:
        """The conversation with its oldest exchanges left out, so that an answer fits the model's context.

        Half of the context at most is kept free for the answer, whatever max_tokens says.
        """
        models = app.state.models
        if body.model not in models:
            raise ApiError(404, f"no model {body.model!r}; there is {', '.join(models)}", "model", "model_not_found")
        engine = models[body.model]
        messages = [{"role": turn.role, "content": turn.content} for turn in body.messages]
        tokenizer, context = getattr(engine, "tokenizer", None), getattr(engine, "context_length", None)
        if tokenizer is None or context is None:
            return {"messages": messages, "dropped": 0}
        kept = fit_messages(tokenizer, messages, context - min(body.max_tokens, context // 2))
        return {"messages": kept, "dropped": len(messages) - len(kept)}

    @routes.post("/reward", dependencies=may_ask)
    def reward(body: RewardRequest) -> dict[str, Any]:
        """Every reward's score of each answer: {"scores": {reward: [score]}}."""
        prompts: Sequence[Any] = [body.asked()] * len(body.answers)
        rewards = app.state.rewards.items()
        return {"scores": {name: call_reward(score, prompts, body.answers, {}) for name, score in rewards}}


def _store(request: Request) -> Store:
    store: Store | None = request.app.state.store
    if store is None:
        raise ApiError(404, "this server has no store; start it with store=labels.db", code="no_store")
    return store


def _given(routes: APIRouter) -> None:
    """What people give. Each of these needs a person, whose pseudonym the export carries."""
    kept = Depends(_store)
    known = Depends(require_person)

    @routes.post("/vote")
    def vote(body: VoteRequest, store: Store = kept, who: Person = known) -> dict[str, Any]:
        """A comparison in the store's batch "chat"."""
        answers = [{"text": one.text, **one.origin.model_dump()} for one in body.answers]
        judgement = store.add_vote(
            who.id, body.asked(), answers, body.winner, token=body.token,
            all_bad=body.kind == "all_bad", shown=body.shown, seconds=body.seconds,
        )  # fmt: skip
        return {"id": judgement.id, "item": judgement.item}

    @routes.post("/demonstration")
    def demonstration(body: DemonstrationRequest, store: Store = kept, who: Person = known) -> dict[str, Any]:
        """An ideal answer, which becomes a row for SFT."""
        origin = body.origin.model_dump() if body.origin else None
        return {"id": store.add_demonstration(who.id, body.asked(), body.answer, origin, body.edited_from)}

    @routes.post("/prompt")
    def prompt(body: PromptRequest, store: Store = kept, who: Person = known) -> dict[str, Any]:
        """A prompt for later training; without consent, or known already, it is not kept: {"kept": false}."""
        if not body.consent:
            return {"kept": False}
        return {"kept": store.add_prompt(body.asked(), who.id, True) is not None}
