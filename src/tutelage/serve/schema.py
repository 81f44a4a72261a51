"""Requests and answers of the API as pydantic models: what is checked, and what /openapi.json says.

A request's keys are strict: a wrong type, an unknown key, or one that the engine cannot honour is refused by name, as
dropping it would change what the client believes it got. Answers are only described here; they are written in
answers.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tutelage.engine import SamplingParams

TOP = 20
"""Most alternatives of a token."""
Id = Annotated[int, Field(ge=0, lt=1 << 31)]
Text = Annotated[str, Field(min_length=1)]


class Part(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """As chat templates take it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(BaseModel):
    """What a stream tells beside the text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class ResponseFormat(BaseModel):
    """Only plain text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]


class Sampling(BaseModel):
    """What both kinds of requests have in common."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    model: str | None = None
    """One of /v1/models; the server's best if left out."""
    max_tokens: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    """Most new tokens of each answer."""
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    """0 takes the likeliest token each time."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31)] = 0
    """Sample among so many likeliest tokens; 0 or -1: all. (Not OpenAI's.)"""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Leave out tokens less likely than this share of the likeliest one. (Not OpenAI's.)"""
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Above 1 makes tokens that are there already less likely. (Not OpenAI's.)"""
    n: Annotated[int, Field(ge=1, lt=1 << 16)] | None = None
    """Answers of each prompt."""
    stop: Text | Annotated[list[Text], Field(max_length=16)] | None = None
    """Strings that end an answer, which does not contain them."""
    stop_token_ids: Annotated[list[Id], Field(max_length=64)] | None = None
    """Tokens that end an answer. (Not OpenAI's.)"""
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    """The same seed and prompt give the same answer."""
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    """Added to the logits of token ids; -100 bans a token."""
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    """Not supported: only 0 is accepted (repetition_penalty is)."""
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    """Not supported: only 0 is accepted (repetition_penalty is)."""
    stream: bool | None = None
    """Answer by server-sent events, piece by piece."""
    stream_options: StreamOptions | None = None
    user: str | None = None
    """Accepted and not used."""

    @field_validator("presence_penalty", "frequency_penalty", mode="before")
    @classmethod
    def _no_penalty(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not isinstance(value, bool) and value != 0:
            raise ValueError("is not supported; leave it out, or use repetition_penalty")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key in value or {}:
            if not (key.isascii() and key.isdigit() and len(key) < 11):
                raise ValueError(f"{key[:40]!r} is no token id")
        return value

    @model_validator(mode="after")
    def _options(self) -> Sampling:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is allowed only with stream=true")
        return self

    def params(self, max_tokens: int, logprobs: int | None) -> SamplingParams:
        """As the engine takes them."""
        bias = {int(token): value for token, value in (self.logit_bias or {}).items()}
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(self.top_k, 0),
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            n=self.n or 1,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            stop_tokens=tuple(self.stop_token_ids or ()),
            banned_tokens=tuple(token for token, value in bias.items() if value == -100),
            logit_bias={token: value for token, value in bias.items() if value != -100} or None,
            seed=self.seed,
            logprobs=logprobs,
        )


class ChatRequest(Sampling):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    """The newer name of max_tokens."""
    logprobs: bool | None = None
    """Tell the log-probability of each token."""
    top_logprobs: Annotated[int, Field(ge=0, le=TOP)] | None = None
    """And so many alternatives."""
    response_format: ResponseFormat | None = None
    """Not supported: only plain text is accepted."""
    store: Literal[False] | None = None
    """Nothing is stored."""
    metadata: dict[str, str] | None = None
    """Accepted and not used."""

    @model_validator(mode="after")
    def _pairs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is allowed only with logprobs=true")
        return self


class CompletionRequest(Sampling):
    """POST /v1/completions"""

    prompt: str | Annotated[list[Id], Field(min_length=1)] | Annotated[
        list[str] | list[Annotated[list[Id], Field(min_length=1)]], Field(min_length=1, max_length=2048)
    ]  # fmt: skip
    """A text, token ids, or a list of either."""
    logprobs: Annotated[int, Field(ge=0, le=TOP)] | None = None
    """Tell each token's log-probability, and so many alternatives."""
    echo: bool | None = None
    """Give the prompt back too; with logprobs and max_tokens=0 this scores it."""
    best_of: Annotated[int, Field(ge=1, lt=1 << 16)] | None = None
    """Only what n is."""
    suffix: Literal[None] = None
    """Not supported."""

    @model_validator(mode="after")
    def _best(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of is not supported; ask for n answers and choose")
        return self

    def prompts(self) -> list[str] | list[list[int]]:
        """Each prompt alone."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return self.prompt  # type: ignore[return-value]


# answers


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TokenChoice(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TokenChoice):
    top_logprobs: list[TokenChoice]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None


class Answer(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    index: int
    message: Answer
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatAnswer(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str


class TextLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class TextAnswer(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    system_fingerprint: str


class ModelCard(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None = None


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]


class Problem(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    error: Problem


class Health(BaseModel):
    status: Literal["ok", "stopping"]
    models: list[str]
