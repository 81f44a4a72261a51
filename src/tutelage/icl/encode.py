"""Contexts and continuations as token ids, each piece of text encoded once.

Encoding every whole prompt would read the demonstrations once for each input and label. Instead the prefix is encoded
once, and what follows it behind a short anchor that ends as the prefix ends; that the two together are exactly the
tokens of the whole text is checked on every set, and where a tokenizer merges across that border whole texts are
encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError

from tutelage.core.errors import ConfigError, DataError
from tutelage.icl.examples import Example
from tutelage.icl.prompts import Prompter

Pair = tuple[Any, Any]
_ANCHOR = "x"


@dataclass
class Encoded:
    """Pairs for `engine.score`, [N][L], and what had to be left out."""

    pairs: list[list[Pair]]
    dropped: dict[int, int] = field(default_factory=dict)
    """Set -> demonstrations dropped from its beginning, so that the longest query fits."""
    too_long: list[int] = field(default_factory=list)
    """Queries that do not fit, by number: they have no pairs."""


class Encoder:
    """Builds the pairs of one prompter for one engine."""

    def __init__(self, engine: Any, prompter: Prompter) -> None:
        self.engine, self.prompter = engine, prompter
        self.local = hasattr(engine, "encode") and getattr(engine, "tokenizer", None) is not None
        self.limit = getattr(engine, "context_length", None) or 1 << 30
        kind = getattr(engine, "kind", "causal")
        self.apart = self.local and kind == "seq2seq"
        if kind != "causal":  # the two sides do not share one sequence
            self.local = False

    def pairs(
        self, sets: Sequence[Sequence[Example]], queries: Sequence[Example], which: Sequence[tuple[int, int]]
    ) -> Encoded:
        """Pairs for each (set, query) of `which`, one for each option of the query.

        Raises DataError for a query without options, and for an option that has no token of its own.
        """
        for query in queries:
            if not query.options:
                raise DataError(f"an example has no options to score: {query.text[:60]!r}")
            if not all(option.strip() for option in query.options):
                raise DataError(f"an option of {query.text[:60]!r} has no token of its own: it is empty")
        if self.prompter.read != "continuation":
            return self._clozes(sets, queries, which)
        if not self.local and self.prompter.chat:
            raise ConfigError("chat=true scores behind a chat template, which needs a local decoder; chat=false")
        if not self.local:
            return Encoded([self._texts(sets[s], queries[q]) for s, q in which])
        if self.prompter.chat:
            return self._chats(sets, queries, which)
        tails = self._tails(queries, bool(self.prompter.prefix(sets[0])) if sets else False)
        return self._fitted(sets, queries, which, tails)

    def _texts(self, demonstrations: Sequence[Example], query: Example) -> list[Pair]:
        prefix = self.prompter.prefix(demonstrations)
        made = [(prefix + context, continuation) for context, continuation in
                (self.prompter.pair(query, option) for option in query.options)]  # fmt: skip
        return [self._apart(*pair) for pair in made] if self.apart else made

    def _apart(self, context: str, continuation: str) -> Pair:
        """The two sides of an encoder-decoder: blanks at their border belong to neither.

        DataError for an answer that the tokenizer cannot tell from others: such answers would all score alike.
        """
        tokenizer = self.engine.tokenizer
        if tokenizer.unk_token_id in tokenizer(continuation, add_special_tokens=False)["input_ids"]:
            raise DataError(f"the label {continuation!r} has a token that the model's tokenizer lacks "
                            f"({tokenizer.unk_token}); choose another word")  # fmt: skip
        return context.rstrip(), continuation.strip()

    def _chats(
        self, sets: Sequence[Sequence[Example]], queries: Sequence[Example], which: Sequence[tuple[int, int]]
    ) -> Encoded:
        """As `_fitted`, of messages through the model's chat template, which is rendered whole for each query."""
        answers = {option: self._answer(option) for query in queries for option in query.options}
        longest = [max(len(answers[option]) for option in query.options) for query in queries]

        def size(q: int, demonstrations: Sequence[Example]) -> int:
            return len(self._chat(demonstrations, queries[q])) + longest[q] - 1

        def made(q: int, demonstrations: Sequence[Example]) -> list[Pair]:
            context = self._chat(demonstrations, queries[q])
            return [(context, answers[option]) for option in queries[q].options]

        return self._rendered(sets, which, size, made, self.limit)

    def _clozes(
        self, sets: Sequence[Sequence[Example]], queries: Sequence[Example], which: Sequence[tuple[int, int]]
    ) -> Encoded:
        """As `_fitted`, of texts with a gap, which the engine encodes."""
        tokenizer, room = self.engine.tokenizer, self.engine.context_length
        if self.prompter.read == "mask":
            from tutelage.engine.masked import room as positions  # loads transformers, which a masked LM has loaded

            room = positions(self.engine)
        options = dict.fromkeys(option for query in queries for option in query.options)
        tokens = {o: max(len(tokenizer(blank + o, add_special_tokens=False)["input_ids"]) for blank in ("", " "))
                  for o in options}  # fmt: skip
        # an encoder-decoder's answer is on the other side, and its sentinel here
        longest = [1 if self.prompter.read == "sentinel" else max(tokens[o] for o in q.options) for q in queries]

        def size(q: int, demonstrations: Sequence[Example]) -> int:
            cloze = self.prompter.cloze(demonstrations, queries[q])
            return len(tokenizer(cloze.before + cloze.after)["input_ids"]) + longest[q]

        def made(q: int, demonstrations: Sequence[Example]) -> list[Pair]:
            cloze = self.prompter.cloze(demonstrations, queries[q])
            return [(cloze, option) for option in queries[q].options]

        return self._rendered(sets, which, size, made, room)

    def _rendered(
        self, sets: Sequence[Sequence[Example]], which: Sequence[tuple[int, int]],
        size: Callable[[int, Sequence[Example]], int], made: Callable[[int, Sequence[Example]], list[Pair]], limit: int,
    ) -> Encoded:  # fmt: skip
        """Pairs of whole prompts, `made` of a query and the demonstrations that are kept; `size`: their tokens."""
        room = limit // 2 if any(len(s) for s in sets) else limit
        alone = {q: size(q, ()) for q in dict.fromkeys(q for _, q in which)}
        out = Encoded([], too_long=sorted(q for q, tokens in alone.items() if tokens > room))
        bad = set(out.too_long)
        for s, asked in _by_set(which).items():
            fitting = [q for q in asked if q not in bad]
            if fitting:
                worst = max(fitting, key=lambda q: alone[q])
                while size(worst, sets[s][out.dropped.get(s, 0) :]) > limit:
                    out.dropped[s] = out.dropped.get(s, 0) + 1
        for s, q in which:
            out.pairs.append([] if q in bad else made(q, sets[s][out.dropped.get(s, 0) :]))
        return out

    def _chat(self, demonstrations: Sequence[Example], query: Example) -> list[int]:
        try:
            return self.engine.encode(self.prompter.prompt(demonstrations, query))
        except TemplateError as problem:
            raise DataError(f"chat=true: the model's chat template refuses these messages ({problem})") from None

    def _answer(self, option: str) -> list[int]:
        ids = list(self.engine.tokenizer(option, add_special_tokens=False)["input_ids"])
        if not ids:
            raise DataError(f"the label {option!r} has no tokens under this tokenizer; choose another word")
        return ids

    def _tails(self, queries: Sequence[Example], behind: bool) -> list[list[tuple[list[int], list[int]]]]:
        """[Q][L] (ids of the context behind the prefix, ids of the continuation)."""
        anchor = _ANCHOR + self.prompter.format.separator if behind else ""
        skip = self.engine.encode(anchor) if behind else []
        texts, shape = [], []
        for query in queries:
            made = [self.prompter.pair(query, option) for option in query.options]
            shape.append(len(made))
            for context, continuation in made:
                kept = context.rstrip(" ")  # blanks before an answer belong to its first token
                texts += [anchor + kept, anchor + context + continuation]
        distinct = list(dict.fromkeys(texts))
        encoded = dict(zip(distinct, self._many(distinct), strict=True))
        flat = []
        for left, whole in zip(texts[::2], texts[1::2]):
            cut = len(encoded[left])
            ids = encoded[whole]
            if len(ids) <= cut:
                what = whole[len(left) :]
                raise DataError(f"the continuation {what!r} has no token of its own; choose another label")
            flat.append((ids[len(skip) : cut], ids[cut:]))
        out, at = [], 0
        for count in shape:
            out.append(flat[at : at + count])
            at += count
        return out

    def _many(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts, the empty one included (no tokens, not even a bos)."""
        full = [t for t in texts if t]
        found = iter(self.engine.tokenizer(full)["input_ids"] if full else ())
        return [list(next(found)) if t else [] for t in texts]

    def _fitted(
        self, sets: Sequence[Sequence[Example]], queries: Sequence[Example], which: Sequence[tuple[int, int]],
        tails: list[list[tuple[list[int], list[int]]]],
    ) -> Encoded:  # fmt: skip
        out = Encoded([])
        sizes = [max(len(a) + len(b) for a, b in tail) for tail in tails]
        # with demonstrations half of the context is theirs: one endless input must not cost everybody the examples
        room = self.limit // 2 if any(len(s) for s in sets) else self.limit
        out.too_long = sorted({q for _, q in which if sizes[q] - 1 > room})
        bad = set(out.too_long)
        prefixes: dict[int, list[int]] = {}
        exact: dict[int, bool] = {}
        for s, asked in _by_set(which).items():
            mine = [q for q in asked if q not in bad]
            longest = max((sizes[q] for q in mine), default=1)
            prefixes[s], out.dropped[s] = self._prefix(sets[s], longest)
            exact[s] = not mine or self._joins(sets[s][out.dropped[s] :], prefixes[s], queries[mine[0]], tails[mine[0]])
        out.dropped = {s: n for s, n in out.dropped.items() if n}
        for s, q in which:
            if q in bad:
                out.pairs.append([])
            elif exact[s]:
                out.pairs.append([(prefixes[s] + a, b) for a, b in tails[q]])
            else:
                texts = self._texts(sets[s][out.dropped.get(s, 0) :], queries[q])
                out.pairs.append([self._cut(context, continuation) for context, continuation in texts])
        return out

    def _cut(self, context: str, continuation: str) -> Pair:
        """Both sides' ids, encoded as one text."""
        kept = context.rstrip(" ")
        left = self.engine.encode(kept) if kept else []
        whole = self.engine.encode(context + continuation)
        return whole[: len(left)], whole[len(left) :]

    def _prefix(self, demonstrations: Sequence[Example], longest: int) -> tuple[list[int], int]:
        """(ids, how many demonstrations were dropped from the beginning) so that `longest` more tokens fit."""
        for dropped in range(len(demonstrations) + 1):
            text = self.prompter.prefix(demonstrations[dropped:])
            ids = self.engine.encode(text) if text else []
            if len(ids) + longest - 1 <= self.limit:
                return ids, dropped
        raise DataError(
            f"the instruction alone has {len(ids)} tokens and does not fit before a query of {longest} tokens: the "
            f"model's context is {self.limit}"
        )

    def _joins(
        self, demonstrations: Sequence[Example], prefix: list[int], query: Example,
        tail: list[tuple[list[int], list[int]]],
    ) -> bool:  # fmt: skip
        """Whether prefix and tail, encoded apart, are the tokens of the whole."""
        context, continuation = self._texts(demonstrations, query)[0]
        return self.engine.encode(context + continuation) == prefix + tail[0][0] + tail[0][1]


def _by_set(which: Sequence[tuple[int, int]]) -> dict[int, list[int]]:
    """Set -> its queries."""
    out: dict[int, list[int]] = {}
    for s, q in which:
        out.setdefault(s, []).append(q)
    return out
