"""From sampled tokens to text: how a continuation follows its prompt, where stop strings end it, the Completion."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from tutelage.core.errors import DataError
from tutelage.engine.requests import NOT_A_NUMBER, Completion
from tutelage.engine.rows import Finished, Request


class Texts:
    """Texts of one tokenizer (None: every text is empty). apart: a completion is a text of its own, as a decoder's is
    whose prompt went through an encoder."""

    def __init__(self, tokenizer: Any, apart: bool = False) -> None:
        self.tokenizer, self.apart = tokenizer, apart

    def of(self, tokens: Sequence[int]) -> str:
        """Text of tokens without special tokens."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True) if self.tokenizer is not None else ""

    @functools.cached_property
    def _strips(self) -> bool:
        """Whether the tokenizer drops the blank before the first decoded word (SentencePiece, word-level)."""
        if not callable(self.tokenizer):
            return False
        ids = self.tokenizer("a a", add_special_tokens=False)["input_ids"]
        return not self.of(ids[-1:]).startswith(" ")

    def continuation(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """Text of completion tokens as it continues the prompt's text: a blank between the two is kept."""
        if self.tokenizer is None:
            return ""
        if self._strips and prompt and not self.apart:
            tail = list(prompt[-2:])
            before, both = self.of(tail), self.of([*tail, *tokens])
            if before and both.startswith(before):
                return both[len(before) :]
        return self.of(tokens)

    def has_stop(self, request: Request, tokens: list[int]) -> bool:
        """Whether a stop string of the request stands in the text of its completion tokens."""
        # a stop string that ends now begins at most its own bytes ago; the rest of the text was looked at before
        window = max(len(stop.encode()) for stop in request.params.stop) + 8
        if len(tokens) > window:
            recent = self.of(tokens[-window:])
            if not any(stop in recent for stop in request.params.stop):
                return False
        text = self.continuation(request.prompt, tokens)
        return any(stop in text for stop in request.params.stop)

    def completion(self, request: Request, finished: Finished) -> Completion:
        """The request's answer. Raises what ended the row, if something went wrong."""
        if finished.error is not None:
            raise finished.error
        if any(map(math.isnan, finished.logprobs)):
            raise DataError(NOT_A_NUMBER)
        tokens, params = finished.tokens, request.params
        ended = (
            finished.reason in ("eos", "stop")
            and tokens
            and (tokens[-1] in params.stop_tokens or finished.reason == "eos")
        )
        text = self.continuation(request.prompt, tokens[:-1] if ended else tokens)
        cuts = [text.find(stop) for stop in params.stop if stop in text]
        if cuts and finished.reason == "stop":
            text = text[: min(cuts)]
        top = tuple(finished.top) if finished.top is not None else None
        return Completion(text, tuple(tokens), tuple(finished.logprobs), finished.reason, top)

    def completions(self, group: Sequence[Request], results: Sequence[Finished]) -> list[Completion] | Exception:
        """A prompt's answers, or what went wrong with one of them, which no other prompt is to suffer from."""
        try:
            return [self.completion(request, result) for request, result in zip(group, results, strict=True)]
        except Exception as problem:  # a tokenizer raises whatever it likes
            return problem
