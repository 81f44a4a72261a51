"""Scores from a completions server that echoes its prompt: which of its tokens are the continuation's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from tutelage.core.errors import DataError
from tutelage.engine.requests import Score
from tutelage.engine.transport import Server, ServerError

NO_ECHO = "the server gives no log-probs of its prompt (echo with logprobs), which scoring needs"


class EchoScorer:
    """Scores of (context, continuation) pairs, both texts or both token ids, one request each.

    max_tokens=0 is asked for; a server that refuses it is asked for 1 token, which is dropped.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self._new = 0

    def score(self, model: str, context: Any, continuation: Any) -> Score:
        """The Score of one pair. Raises DataError where the server gives no usable log-probs."""
        if isinstance(context, str) != isinstance(continuation, str) and len(context):
            raise DataError("one side is text and the other token ids; a server scores two texts or two lists of ids")
        if not len(continuation):
            return Score(0.0, (), True, ())
        prompt = context + continuation if isinstance(continuation, str) else [*context, *continuation]
        choice, prompt_tokens = self._echo(model, prompt)
        found = _logprobs(choice)
        if not isinstance(prompt, str):
            start, end = len(context), len(prompt)
        elif (span := text_span(found["tokens"], found.get("text_offset"), prompt, context)) is not None:
            start, end = span
        else:
            start, end = self._counted(model, context, found["tokens"], prompt_tokens, prompt)
        return _part(found, start, end, () if isinstance(continuation, str) else tuple(continuation))

    def _echo(self, model: str, prompt: Any) -> tuple[dict[str, Any], int | None]:
        """The echoing answer, and how many tokens the server counts in the prompt, if it says so."""
        body = {"model": model, "prompt": prompt, "echo": True, "logprobs": 1, "temperature": 0.0}
        try:
            answer = self.server.json("/completions", {**body, "max_tokens": self._new})
        except ServerError as problem:
            if self._new or problem.status not in (400, 422):
                raise
            answer = self.server.json("/completions", {**body, "max_tokens": 1})
            self._new = 1
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices:
            raise DataError(f"{NO_ECHO}: its answer has no choices")
        usage = answer.get("usage")
        return choices[0], usage.get("prompt_tokens") if isinstance(usage, Mapping) else None

    def _counted(
        self, model: str, context: str, tokens: Sequence[str], prompt_tokens: int | None, prompt: str
    ) -> tuple[int, int]:
        """The split by counting, where a server's offsets do not fit the text: some cut the blanks off every token."""
        end = prompt_tokens if prompt_tokens is not None else len(tokens) - self._new
        shown = "".join(tokens[:end])
        if end < 2 or end > len(tokens) or not _alike(shown, prompt):
            raise DataError(f"{NO_ECHO}: its tokens {shown[:60]!r} are not the prompt {prompt[:60]!r}")
        if not context.rstrip():
            return 0, end
        choice, count = self._echo(model, context.rstrip())
        left = _logprobs(choice)["tokens"]
        left = left[: count if count is not None else len(left) - self._new]
        same = (a == b for a, b in zip(left, tokens[:end]))
        return next((i for i, equal in enumerate(same) if not equal), min(len(left), end)), end


def _alike(tokens: str, prompt: str) -> bool:
    """Whether the tokens' letters hold the prompt's, blanks and broken characters aside."""

    def letters(text: str) -> str:
        return "".join(c for c in text if c.isascii() and c.isalnum())

    return letters(prompt) in letters(tokens)


def _logprobs(choice: Mapping[str, Any]) -> dict[str, Any]:
    found = choice.get("logprobs") if isinstance(choice, Mapping) else None
    if not isinstance(found, dict) or not found.get("tokens") or not found.get("token_logprobs"):
        raise DataError(f"{NO_ECHO}: its answer has none")
    if len(found["tokens"]) != len(found["token_logprobs"]):
        raise DataError(f"{len(found['token_logprobs'])} log-probs for {len(found['tokens'])} tokens")
    return found


def text_span(
    tokens: Sequence[str], offsets: Sequence[int] | None, prompt: str, context: str
) -> tuple[int, int] | None:
    """(first, past the last) of the echoed tokens that are the continuation's; None where offsets and text disagree.

    Blanks at the context's end count to the continuation, and so does a token that begins in the context and ends past
    it. Offsets (characters from the text's begin, as the API defines them) are checked against the text: some servers
    count the bos token in, or leave blanks out. Tokens past the prompt's end, which were sampled, are left out.
    """
    boundary, joined = len(context.rstrip()), "".join(tokens)
    sizes = [0, *accumulate(len(token) for token in tokens)][:-1]
    given = list(offsets) if offsets and len(offsets) == len(tokens) else sizes
    shifted = given[1] if len(given) > 1 else 0
    for at in (given, [o - shifted for o in given], [o - max(joined.find(prompt), 0) for o in sizes]):
        if not _fits(tokens, at, prompt):
            continue
        ends = [*at[1:], at[-1] + len(tokens[-1])]
        inside = [i for i, (a, b) in enumerate(zip(at, ends)) if a < len(prompt) and (a >= boundary or b > boundary)]
        return (inside[0], inside[-1] + 1) if inside else None
    return None


def _fits(tokens: Sequence[str], at: Sequence[int], prompt: str) -> bool:
    """Whether every token stands in the prompt where its offset says, from the begin of the prompt to its end."""
    begun = False
    for i, (token, start) in enumerate(zip(tokens, at)):
        if start < 0 and i == 0:  # a bos token that is no part of the text
            continue
        if not begun and start != 0 or "\ufffd" in token:
            return False
        begun = True
        if token.startswith("bytes:"):  # part of a character; its neighbours are checked
            continue
        part = prompt[start : start + len(token)] if start < len(prompt) else token
        if not token.startswith(part) or (len(part) < len(token) and start + len(part) < len(prompt)):
            return False
    last = max((start + len(token) for token, start in zip(tokens, at)), default=0)
    return begun and last >= len(prompt)


def _part(found: Mapping[str, Any], start: int, end: int, ids: tuple[int, ...]) -> Score:
    """The Score of tokens start to end. ``is_greedy`` is False where the server does not tell its first choices."""
    values = found["token_logprobs"][start:end]
    if len(values) < end - start or not values:
        raise DataError(f"{NO_ECHO}: it gave {len(values)} of {max(end - start, 1)}")
    if any(not isinstance(value, int | float) for value in values):
        raise DataError("the server gives no log-prob for a text's first token; expected a context that is not empty")
    top = (found.get("top_logprobs") or [])[start:end]
    told = len(top) == len(values) and all(top)
    greedy = told and all(value >= max(best.values()) - 1e-6 for value, best in zip(values, top))
    return Score(float(sum(values)), tuple(float(value) for value in values), greedy, ids)
