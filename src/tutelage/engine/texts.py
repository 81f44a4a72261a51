"""From sampled tokens to text: how a continuation follows its prompt, where stop strings end it, the Completion."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Collection, Sequence
from typing import Any

from tutelage.core.errors import DataError
from tutelage.engine.requests import NOT_A_NUMBER, Completion
from tutelage.engine.rows import Finished, Request


class Texts:
    """Texts of one tokenizer (None: every text is empty). apart: a completion is a text of its own, as a decoder's is
    whose prompt went through an encoder."""

    def __init__(self, tokenizer: Any, apart: bool = False) -> None:
        self.tokenizer, self.apart = tokenizer, apart
        self._alone: dict[int, str] = {}

    def of(self, tokens: Sequence[int], special: bool = False) -> str:
        """Text of tokens without special tokens (special: with them)."""
        if self.tokenizer is None:
            return ""
        return self._decode(list(tokens), skip_special_tokens=not special)

    def alone(self, token: int) -> str:
        """The same of one token, remembered."""
        found = self._alone.get(token)
        if found is None:
            found = self._alone[token] = self.of([token])
        return found

    @functools.cached_property
    def _decode(self) -> Any:
        """The tokenizer's decode. Of a plain fast tokenizer it is its inner one's, and the looks at what kind of list
        it was given take ten times longer than the decoding."""
        from transformers import PreTrainedTokenizerFast as Fast

        kind, inner = type(self.tokenizer), getattr(self.tokenizer, "backend_tokenizer", None)
        plain = isinstance(self.tokenizer, Fast) and kind.decode is Fast.decode and kind._decode is Fast._decode
        cleans = getattr(self.tokenizer, "clean_up_tokenization_spaces", True)
        return inner.decode if inner is not None and plain and not cleans else self.tokenizer.decode

    @functools.cached_property
    def _strips(self) -> bool:
        """Whether the tokenizer drops the blank before the first decoded word (SentencePiece, word-level)."""
        if not callable(self.tokenizer):
            return False
        ids = self.tokenizer("a a", add_special_tokens=False)["input_ids"]
        return not self.of(ids[-1:]).startswith(" ")

    def context(self, prompt: Sequence[int]) -> list[int]:
        """The prompt's last tokens, where a continuation's text depends on what stands before it."""
        return list(prompt[-2:]) if self.tokenizer is not None and self._strips and not self.apart else []

    def continuation(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """Text of completion tokens as it continues the prompt's text: a blank between the two is kept."""
        tail = self.context(prompt)
        before = self.of(tail) if tail else ""
        if before:
            both = self.of([*tail, *tokens])
            if both.startswith(before):
                return both[len(before) :]
        return self.of(tokens)

    def token(self, token: int) -> bytes:
        """A token's own text as UTF-8, special tokens too; parts of characters are the bytes that they stand for."""
        if self.tokenizer is None:
            return b""
        piece = self._piece(token)
        if piece is not None and self._bytes and all(c in self._bytes for c in piece):
            return bytes(self._bytes[c] for c in piece)
        if piece is not None and re.fullmatch(r"<0x[0-9A-F]{2}>", piece):  # SentencePiece's byte fallback
            return bytes([int(piece[3:5], 16)])
        if piece is not None and piece.startswith("\u2581"):
            return piece.replace("\u2581", " ").encode("utf-8", "replace")
        return str(self.tokenizer.decode([token])).encode("utf-8", "replace")

    def _piece(self, token: int) -> str | None:
        find = getattr(self.tokenizer, "convert_ids_to_tokens", None)
        return find(token) if find is not None else None

    @functools.cached_property
    def _bytes(self) -> dict[str, int]:
        """The byte that each character of a token stands for, of a byte-level tokenizer; of another nothing."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if "ByteLevel" not in repr(getattr(backend, "decoder", None)):
            return {}
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        return {char: byte for byte, char in bytes_to_unicode().items()}

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


def certain(text: str, stops: Sequence[str]) -> int:
    """Length of the part of ``text`` that cannot become part of a stop string or an unfinished character."""
    end = len(text)
    while end and text[end - 1] == "\ufffd":
        end -= 1
    for stop in stops:
        found = text.find(stop)
        if found >= 0:
            end = min(end, found)
        for size in range(min(len(stop) - 1, end), 0, -1):
            if text.endswith(stop[:size], 0, end):
                end -= size
                break
    return end


class Growing:
    """A row's text as its tokens come. Each is decoded together with the few before it, never the whole text again."""

    def __init__(self, texts: Texts, request: Request, eos: Collection[int] = ()) -> None:
        """eos: tokens that end the text beside the request's own, and are no part of it."""
        self._texts, self._stops, self._ends = texts, request.params.stop, {*request.params.stop_tokens, *eos}
        self._context = texts.context(request.prompt)
        """Tokens whose text is known, which the next ones are decoded behind."""
        self._before = texts.of(self._context) if self._context else ""
        if not self._before:
            self._context = []
        self._new: list[int] = []
        self._held = ""
        """Text that may yet turn into a stop string."""
        self._sent = 0

    @property
    def length(self) -> int:
        """Characters known so far."""
        return self._sent + len(self._held)

    def add(self, token: int) -> str:
        """The text that is certain now and was not before."""
        if token in self._ends:
            return ""
        self._new.append(token)
        both = self._texts.of([*self._context, *self._new])
        if not both.startswith(self._before):
            return ""
        text = both[len(self._before) :]
        if both.endswith("\ufffd"):  # the last character may be unfinished, those before are as they are
            text = text[:-1]
            self._before += text
        else:
            # special tokens have no text, and behind nothing a decoder may drop a blank
            self._context = self._new if text else self._context + self._new
            one = self._context[0] if len(self._context) == 1 else None
            self._before = self._texts.of(self._context) if one is None else self._texts.alone(one)
            self._new = []
        if self._stops:
            text = self._held + text
            end = certain(text, self._stops)
            self._held, text = text[end:], text[:end]
        self._sent += len(text)
        return text

    def rest(self, whole: str) -> str:
        """What is left of the completion's text at its end."""
        return whole[self._sent :]
