"""The same interface over any OpenAI-compatible HTTP server."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tutelage.core.errors import ConfigError, DataError
from tutelage.engine.requests import Completion, Output, Piece, Prompt, SamplingParams, Score


class RemoteEngine:
    """Client of ``base_url`` (".../v1"): messages go to /chat/completions, text and token ids to /completions.

    ``workers`` requests are in flight at once. A failed request sets its Output's ``error``.
    """

    def __init__(
        self, base_url: str, model: str | None = None, api_key: str = "none", timeout: float = 600.0, workers: int = 8
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.api_key = api_key
        self.timeout = timeout
        self.workers = workers
        self._model = model

    @property
    def model(self) -> str:
        """The served model's name; the server's first one if none was given."""
        if self._model is None:
            listed = self._call("/models", None).get("data") or []
            if not listed:
                raise DataError(f"{self.base_url} serves no model; name one with model=")
            self._model = str(listed[0]["id"])
        return self._model

    def generate(
        self, prompts: Sequence[Prompt] | str, params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Output]:
        """One Output a prompt, in order."""
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if params is None or isinstance(params, SamplingParams):
            each = [params or SamplingParams()] * len(prompts)
        else:
            each = list(params)
        if len(each) != len(prompts):
            raise DataError(f"{len(prompts)} prompts but {len(each)} SamplingParams")
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(self._one, prompts, each))

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Piece]:
        """Pieces of one completion as the server sends them. Raises DataError when the server refuses."""
        params = params or SamplingParams()
        path, body = self._body(prompt, params)
        with self._open(path, {**body, "stream": True, "n": 1}) as response:
            for line in response:
                data = line.decode("utf-8").strip().removeprefix("data:").strip()
                if not data or not data.startswith("{"):
                    continue
                for choice in json.loads(data).get("choices", []):
                    text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
                    if text or choice.get("finish_reason"):
                        yield Piece(text, (), choice.get("finish_reason"))

    def score(self, pairs: Sequence[tuple[Any, Any]]) -> list[Score]:
        """Scores through /completions with echo and logprobs (servers that offer it); text on both sides only."""
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(self._score, pairs))

    def _score(self, pair: tuple[Any, Any]) -> Score:
        context, continuation = pair
        body = {"model": self.model, "prompt": context + continuation, "max_tokens": 0, "echo": True, "logprobs": 1}
        try:
            found = self._call("/completions", body)["choices"][0]["logprobs"]
            start = next((i for i, at in enumerate(found["text_offset"]) if at >= len(context)), len(found["tokens"]))
            logprobs = tuple(float(x or 0.0) for x in found["token_logprobs"][start:])
            best = [max(t.values()) if t else 0.0 for t in (found.get("top_logprobs") or [])[start:]]
            greedy = bool(best) and all(a >= b - 1e-6 for a, b in zip(logprobs, best, strict=False))
            return Score(sum(logprobs), logprobs, greedy)
        except (DataError, KeyError, TypeError, IndexError) as problem:
            return Score(float("nan"), error=f"the server gave no log-probs: {problem}")

    def _body(self, prompt: Prompt, params: SamplingParams) -> tuple[str, dict[str, Any]]:
        if params.banned_tokens:
            bias = {**(params.logit_bias or {}), **{token: -100.0 for token in params.banned_tokens}}
        else:
            bias = dict(params.logit_bias or {})
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "n": params.n,
        }
        extra = {
            "stop": list(params.stop),
            "seed": params.seed,
            "logit_bias": {str(k): v for k, v in bias.items()},
            "top_k": params.top_k,
            "min_p": params.min_p,
            "repetition_penalty": params.repetition_penalty if params.repetition_penalty != 1.0 else None,
            "stop_token_ids": list(params.stop_tokens),
        }
        # servers refuse keys they do not know, so only what differs from the default is sent
        body.update({k: v for k, v in extra.items() if v or (k == "seed" and v is not None)})
        chat = not isinstance(prompt, str) and len(prompt) > 0 and not isinstance(prompt[0], int)
        if chat:
            if params.logprobs is not None:
                body.update(logprobs=True, top_logprobs=params.logprobs)
            return "/chat/completions", {**body, "messages": list(prompt)}
        if params.logprobs is not None:
            body["logprobs"] = params.logprobs
        return "/completions", {**body, "prompt": prompt if isinstance(prompt, str) else list(prompt)}

    def _one(self, prompt: Prompt, params: SamplingParams) -> Output:
        try:
            path, body = self._body(prompt, params)
            answer = self._call(path, body)
            return Output((), tuple(_completion(choice) for choice in answer["choices"]))
        except (DataError, KeyError) as problem:
            return Output(error=str(problem))

    def _call(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        with self._open(path, body) as response:
            return json.loads(response.read())

    def _open(self, path: str, body: dict[str, Any] | None) -> Any:
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigError(f"{self.base_url!r} is no http address")
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.api_key}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base_url + path, data=data, headers=headers)
        try:
            return urllib.request.urlopen(request, timeout=self.timeout)
        except urllib.error.HTTPError as problem:
            said = problem.read().decode("utf-8", "replace")[:500]
            raise DataError(f"{self.base_url}{path} answered {problem.code}: {said}") from problem
        except OSError as problem:
            raise DataError(f"{self.base_url}{path} cannot be reached: {problem}") from problem


def _completion(choice: dict[str, Any]) -> Completion:
    text = choice["message"].get("content") or "" if "message" in choice else choice.get("text", "")
    found = choice.get("logprobs") or {}
    if "content" in found:
        logprobs = [item["logprob"] for item in found["content"] or []]
    else:
        logprobs = found.get("token_logprobs") or []
    return Completion(text, (), tuple(float(x or 0.0) for x in logprobs), choice.get("finish_reason") or "stop")
