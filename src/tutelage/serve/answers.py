"""Answers in OpenAI's two forms, chat and text: whole, or as the events of a stream."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from tutelage.engine import Completion, Score
from tutelage.engine.rows import Request
from tutelage.engine.texts import Texts
from tutelage.serve.desk import Ask, Row

REASONS = {"eos": "stop", "stop": "stop", "length": "length"}
LEAST = -9999.0
"""What stands for a log-prob that JSON has no number for."""
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
"""Headers of a stream."""
DONE = b"data: [DONE]\n\n"


def dumps(value: Any) -> str:
    """JSON in ASCII: half a surrogate pair has no UTF-8."""
    return json.dumps(value, separators=(",", ":"))


def finite(logprob: float) -> float:
    """A log-prob as JSON can hold it."""
    return logprob if logprob > LEAST else LEAST


def shown(token: bytes) -> str:
    """A token's text, or its bytes where it is part of a character."""
    try:
        return token.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def usage(prompts: Sequence[Sequence[int]], made: int) -> dict[str, int]:
    """Tokens that were asked and made."""
    asked = sum(map(len, prompts))
    return {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made}


def rated(made: Completion) -> list[tuple[int, float, Any]]:
    """An answer's tokens with their log-probs and alternatives."""
    top: Sequence[Any] = made.top_logprobs or [{}] * len(made.tokens)
    return list(zip(made.tokens, made.logprobs, top))


class Form:
    """What the two forms share. chat, or text with the echoed prompts' scores (None: not echoed)."""

    chat = True

    def __init__(self, ask: Ask, logprobs: int | None) -> None:
        self.ask, self.logprobs = ask, logprobs
        self.texts: Texts = ask.desk.engine.texts
        kind, name = ("chatcmpl", "chat.completion") if self.chat else ("cmpl", "text_completion")
        self.id, self.created, self.object = f"{kind}-{secrets.token_hex(12)}", int(time.time()), name
        self.model = ask.desk.name
        said = "chat.completion.chunk" if self.chat else name
        self._head = "data: " + dumps(self.head(said))[:-1] + ',"choices":['
        self._tail = ',"usage":null}\n\n'

    def head(self, name: str) -> dict[str, Any]:
        """What every answer and event begins with."""
        return {
            "id": self.id, "object": name, "created": self.created, "model": self.model,
            "system_fingerprint": f"tutelage-{self.ask.desk.created:x}",
        }  # fmt: skip

    def whole(self) -> bytes:
        """The answer to a request that does not stream."""
        choices = [self.choice(row, row.completion()) for row in self.ask.rows]
        made = sum(row.sampled for row in self.ask.rows)
        prompts = [group[0].prompt for group in self.ask.groups]
        return dumps({**self.head(self.object), "choices": choices, "usage": usage(prompts, made)}).encode("ascii")

    def choice(self, row: Row, made: Completion) -> dict[str, Any]:
        """One answer."""
        raise NotImplementedError

    # streams

    def begin(self) -> bytes:
        """What a stream begins with."""
        return b""

    def news(self, with_usage: bool) -> bytes:
        """The events of everything sampled since the last call. ApiError where a row failed."""
        tail = self._tail if with_usage else "}\n\n"
        parts: list[str] = []
        for row in self.ask.rows:
            if not row.over and (row.end is not None or row.fed < len(row.tokens)):
                said = self.event(row)
                if said:
                    parts += [self._head, said, "]", tail]
        return "".join(parts).encode("ascii")

    def event(self, row: Row) -> str:
        """The choice that tells a row's news; "" where they are no text yet."""
        growing = row.growing
        if growing is None:
            growing = row.growing = self.ask.growing(row.request)
        text, reason = "", None
        for token, _, _ in row.tokens[row.fed :]:
            row.offsets.append(growing.length)
            text += growing.add(token)
        row.fed = len(row.tokens)
        if row.end is not None:
            made = row.completion()
            text += growing.rest(made.text)
            reason, row.over = REASONS[made.finish_reason], True
        elif not text:
            return ""
        tokens, offsets = row.tokens[row.told : row.fed], row.offsets
        row.told, row.offsets = row.fed, []
        return self.piece(row.index, text, None if self.logprobs is None else self.told(tokens, offsets), reason)

    def told(self, tokens: Sequence[tuple[int, float, Any]], offsets: Sequence[int]) -> dict[str, Any]:
        """The log-probs of some tokens."""
        raise NotImplementedError

    def piece(self, index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None) -> str:
        """A choice of a stream's event."""
        raise NotImplementedError

    def end(self, with_usage: bool) -> bytes:
        """What a stream ends with."""
        if not with_usage:
            return DONE
        made = sum(row.sampled for row in self.ask.rows)
        found = dumps(usage([group[0].prompt for group in self.ask.groups], made))
        return (self._head + '],"usage":' + found + "}\n\n").encode("ascii") + DONE

    def offsets(self, request: Request, tokens: Sequence[int]) -> list[int]:
        """Where in its text each token of an answer begins."""
        growing, out = self.ask.growing(request), []
        for token in tokens:
            out.append(growing.length)
            growing.add(token)
        return out


class ChatForm(Form):
    """/v1/chat/completions"""

    def choice(self, row: Row, made: Completion) -> dict[str, Any]:
        """See Form."""
        found = None
        if self.logprobs is not None:
            found = self.told(rated(made), ())
        message = {"role": "assistant", "content": made.text, "refusal": None}
        reason = REASONS[made.finish_reason]
        return {"index": row.index, "message": message, "logprobs": found, "finish_reason": reason}

    def begin(self) -> bytes:
        """See Form: the role."""
        delta = '"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}'
        return "".join(
            f'{self._head}{{"index":{row.index},{delta}]}}\n\n' for row in self.ask.rows
        ).encode("ascii")

    def piece(self, index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None) -> str:
        """See Form."""
        delta = f'{{"content":{quoted(text)}}}' if text or reason is None else "{}"
        ended = f'"{reason}"' if reason else "null"
        found = "null" if logprobs is None else dumps(logprobs)
        return f'{{"index":{index},"delta":{delta},"logprobs":{found},"finish_reason":{ended}}}'

    def told(self, tokens: Sequence[tuple[int, float, Any]], offsets: Sequence[int]) -> dict[str, Any]:
        """See Form."""
        items = []
        for token, logprob, top in tokens:
            best = [self._named(other, value) for other, value in (top or {}).items()]
            items.append({**self._named(token, logprob), "top_logprobs": best})
        return {"content": items, "refusal": None}

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.texts.token(token)
        return {"token": text.decode("utf-8", "replace"), "logprob": finite(logprob), "bytes": list(text)}


class TextForm(Form):
    """/v1/completions"""

    chat = False

    def __init__(
        self, ask: Ask, logprobs: int | None, echoes: Sequence[str] | None = None, scores: Sequence[Score] | None = None
    ) -> None:
        """echoes: the prompts as the answers repeat them; scores: of their tokens."""
        super().__init__(ask, logprobs)
        self.echoes, self.scores = echoes, scores

    def choice(self, row: Row, made: Completion) -> dict[str, Any]:
        """See Form."""
        echo = self._echo(row)
        found = None
        if self.logprobs is not None:
            at = [len(echo) + offset for offset in self.offsets(row.request, made.tokens)]
            found = self.told(rated(made), at)
            if self.echoes is not None:
                found = joined(self._prompt(row), found)
        reason = REASONS[made.finish_reason]
        return {"index": row.index, "text": echo + made.text, "logprobs": found, "finish_reason": reason}

    def _echo(self, row: Row) -> str:
        each = len(self.ask.rows) // len(self.ask.groups)
        return self.echoes[row.index // each] if self.echoes is not None else ""

    def begin(self) -> bytes:
        """See Form: the echoed prompts."""
        if self.echoes is None:
            return b""
        parts = []
        for row in self.ask.rows:
            found = self._prompt(row) if self.logprobs is not None else None
            parts.append(f"{self._head}{self.piece(row.index, self._echo(row), found, None)}]}}\n\n")
        return "".join(parts).encode("ascii")

    def piece(self, index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None) -> str:
        """See Form."""
        ended = f'"{reason}"' if reason else "null"
        found = "null" if logprobs is None else dumps(logprobs)
        return f'{{"index":{index},"text":{quoted(text)},"logprobs":{found},"finish_reason":{ended}}}'

    def told(self, tokens: Sequence[tuple[int, float, Any]], offsets: Sequence[int]) -> dict[str, Any]:
        """See Form."""
        return {
            "tokens": [shown(self.texts.token(token)) for token, _, _ in tokens],
            "token_logprobs": [finite(logprob) for _, logprob, _ in tokens],
            "top_logprobs": [self._best(top or {}) for _, _, top in tokens] if self.logprobs else None,
            "text_offset": list(offsets),
        }

    def _best(self, top: Mapping[int, float]) -> dict[str, float]:
        """Best first; of tokens that look alike the likeliest."""
        found: dict[str, float] = {}
        for token, logprob in top.items():
            found.setdefault(shown(self.texts.token(token)), finite(logprob))
        return found

    def _prompt(self, row: Row) -> dict[str, Any]:
        """The log-probs of a prompt's tokens; its first one has none."""
        each = len(self.ask.rows) // len(self.ask.groups)
        prompt, text = list(row.request.prompt), self._echo(row)
        assert self.scores is not None
        score = self.scores[row.index // each]
        told = list(zip(prompt[1:], score.token_logprobs, score.top_logprobs or [{}] * len(prompt)))
        found = self.told([(prompt[0], 0.0, {}), *told], prompt_offsets(self.texts, prompt, text))
        found["token_logprobs"][0] = None
        if found["top_logprobs"] is not None:
            found["top_logprobs"][0] = None
        return found


def joined(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """The log-probs of a prompt and of its continuation as one."""
    return {key: None if value is None else [*value, *b[key]] for key, value in a.items()}


def prompt_offsets(texts: Texts, prompt: Sequence[int], text: str) -> list[int]:
    """Where in a prompt's text each of its tokens begins; one that has no text there, such as a bos token, begins where
    the next one does."""
    out, at = [], 0
    whole = text.encode("utf-8", "replace")
    starts: list[int] = []
    for token in prompt:
        own = texts.token(token)
        starts.append(at)
        if whole.startswith(own, at):
            at += len(own)
        elif own.startswith(b" ") and whole.startswith(own[1:], at):  # a blank that the tokenizer put before the text
            at += len(own) - 1
    for start in starts:
        out.append(len(whole[:start].decode("utf-8", "ignore")))
    return out
