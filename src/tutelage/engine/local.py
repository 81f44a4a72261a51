"""The engine on weights in this process: generate, stream, score, and the rollout path that PPO uses."""

from __future__ import annotations

import functools
import threading
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch

from tutelage.core.errors import DataError, in_words
from tutelage.engine.compiled import Compiled
from tutelage.engine.decode import BatchDecoder, batches_of
from tutelage.engine.masked import NO_GENERATION, score_masked
from tutelage.engine.prompted import PromptDecoder, check_prompt, virtual_tokens
from tutelage.engine.requests import (
    Completion,
    Counts,
    Output,
    Piece,
    Prompt,
    SamplingParams,
    Score,
    is_chat,
    params_for,
)
from tutelage.engine.rows import Cancelled, Finished, Request, Rules
from tutelage.engine.sampling import derive_seed
from tutelage.engine.scheduler import Scheduler
from tutelage.engine.score import score_pairs
from tutelage.engine.seq2seq import Seq2SeqDecoder, score_answers, sentinel
from tutelage.engine.session import Session
from tutelage.engine.support import Support, support
from tutelage.engine.texts import Texts
from tutelage.model.forward import evaluating, inference_attention, learned_prompt, vocabulary
from tutelage.model.kinds import WORDS, Kind, model_kind
from tutelage.text.chat import encode_prompt, turn_end_id


class LocalEngine:
    """Generation and scoring on a live model; nothing is copied, so it always sees the current weights.

    ``max_rows``: most rows decoded at once; a single prompt's n samples are never split. ``kv_bytes``: most bytes of
    keys and values at once; more work than that waits. ``max_tokens``: tokens of one prefill forward. ``bf16``: run
    forwards under bfloat16 autocast (logits stay float32). Models that cannot share prefixes (see support.py) run in
    static batches of at most ``max_batch_tokens`` tokens (rows times longest prompt and completion).

    Encoder-decoders take prompts and contexts in the encoder (seq2seq.py); masked LMs only score (masked.py).
    ``compiled``: decode through torch.compile (see compiled.py): the first step costs seconds, one stream is then
    quicker. "frozen": with the weights as constants, which is quicker still and tunes for half a minute.
    ``prefix_bytes``: for a server whose weights do not change, keys of beginnings that came up before.

    Safe to call from several threads: their rows share the batch.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        max_rows: int = 256,
        bf16: bool = False,
        kv_bytes: int = 2 << 30,
        max_tokens: int = 2048,
        max_batch_tokens: int = 1 << 17,
        compiled: Compiled = False,
        prefix_bytes: int = 0,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_rows = max_rows
        self.bf16 = bf16
        self.kv_bytes = kv_bytes
        self.max_tokens = max_tokens
        self.max_batch_tokens = max_batch_tokens
        self.compiled = compiled
        self.prefix_bytes = prefix_bytes
        self.lock = threading.Lock()
        self.counts = Counts()
        """Tokens asked and computed so far: what shared beginnings saved."""
        self.on_done: Callable[[int], object] | None = None
        """Told how many prompts each finished batch held: for progress."""

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device

    @functools.cached_property
    def kind(self) -> Kind:
        """"causal", "masked" or "seq2seq". DataError for a model that cannot be run at all."""
        kind = model_kind(self.model)
        check_prompt(self.model, kind)
        return kind

    @property
    def context_length(self) -> int:
        """Most tokens (prompt and completion) that the model takes."""
        config = self.model.config.get_text_config()
        most = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1 << 30
        return int(most) - virtual_tokens(self.model)

    @property
    def gap(self) -> Literal["mask", "sentinel"] | None:
        """How a Cloze is filled: at a mask, at a sentinel, or not at all."""
        if self.kind == "masked":
            return "mask"
        return "sentinel" if self.kind == "seq2seq" and sentinel(self.tokenizer) is not None else None

    @property
    def eos_tokens(self) -> tuple[int, ...]:
        """Token ids that end a completion with reason "eos": the tokenizer's and those of the generation config."""
        found = [self.tokenizer.eos_token_id] if self.tokenizer is not None else []
        for source in (getattr(self.model, "generation_config", None), self.model.config):
            value = getattr(source, "eos_token_id", None)
            found += list(value) if isinstance(value, (list, tuple)) else [value]
        return tuple(dict.fromkeys(t for t in found if t is not None))

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt: text as the tokenizer encodes it, messages by the chat template, ids as they are."""
        if self.tokenizer is None and (isinstance(prompt, str) or is_chat(prompt)):
            raise DataError("the prompt is text or messages, but the engine has no tokenizer; give token ids")
        if isinstance(prompt, str):
            return list(self.tokenizer(prompt)["input_ids"])
        if is_chat(prompt):
            if getattr(self.tokenizer, "chat_template", None) is None:
                raise DataError("the prompt is a list of messages, but the tokenizer has no chat template")
            return encode_prompt(self.tokenizer, list(prompt))  # type: ignore[arg-type]
        return [int(token) for token in prompt]  # type: ignore[arg-type]

    def _turn(self, prompt: Prompt, params: SamplingParams) -> SamplingParams:
        """``params`` for this prompt: an answer to messages also ends where the template ends a turn."""
        if not is_chat(prompt) or getattr(self.tokenizer, "chat_template", None) is None:
            return params
        end = turn_end_id(self.tokenizer)
        if end in params.stop_tokens or end in self.eos_tokens:
            return params
        return replace(params, stop_tokens=(*params.stop_tokens, end))

    def generate(
        self, prompts: Sequence[Prompt] | str, params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Output]:
        """One Output a prompt, in order. A request that cannot be served has ``error`` set; the others go on."""
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if self.kind == "masked":
            raise DataError(NO_GENERATION)
        each = params_for(params, len(prompts))
        known: dict[Any, SamplingParams] = {}
        asked = [self._asked(prompt, wanted, known) for prompt, wanted in zip(prompts, each, strict=True)]
        fine = [i for i, (_, _, error) in enumerate(asked) if error is None]
        seeds = [_seed(each[i], asked[i][0]) for i in fine]
        made = self._groups([asked[i][0] for i in fine], [asked[i][1] for i in fine], seeds)
        outputs = [Output(tuple(ids), (), error) for ids, _, error in asked]
        for i, found in zip(fine, made, strict=True):
            ids = outputs[i].prompt_tokens
            outputs[i] = Output(ids, (), in_words(found)) if isinstance(found, Exception) else Output(ids, tuple(found))
        echoed = [i for i in fine if each[i].prompt_logprobs is not None and not outputs[i].error]
        pairs = [(asked[i][0][:1], asked[i][0][1:]) for i in echoed]
        for i, score in zip(echoed, self.score(pairs) if pairs else (), strict=True):
            ids, echo = outputs[i].prompt_tokens, (None, *score.token_logprobs)
            outputs[i] = Output(ids, (), score.error) if score.error else replace(outputs[i], prompt_logprobs=echo)
        return outputs

    def _asked(
        self, prompt: Prompt, params: SamplingParams, known: dict[Any, SamplingParams]
    ) -> tuple[list[int], SamplingParams, str | None]:
        """Ids of a prompt, the parameters that it is sampled with, and why it cannot be served, if so."""
        try:
            turn = self._turn(prompt, params)
            ids = self.encode(prompt)
            error = self._refusal(ids, turn)
            if error is None:
                params = self._fitted(turn, ids, known, (id(params), is_chat(prompt)))
            return ids, params, error
        except Exception as problem:  # tokenizers and templates raise whatever they like; it is about this prompt alone
            return [], params, in_words(problem)

    def _fitted(self, params: SamplingParams, ids: Sequence[int], known: dict[Any, SamplingParams], key: Any) -> Any:
        """``params`` fitted to the room after a prompt. Of one key and room it is one object, which is read only once
        for all the rows that share it."""
        room = self._room(ids)
        place = (key, min(room, params.max_tokens))
        if place not in known:
            known[place] = self._fit(params, room)
        return known[place]

    def rollout(
        self, prompt_ids: Sequence[Sequence[int]], params: SamplingParams, seeds: Sequence[int] | None = None
    ) -> list[Completion]:
        """The quick path of PPO: ``params.n`` completions a prompt, prompt-major, as one flat list.

        Row i draws with ``seeds[i]``, else with a seed derived from ``params.seed`` (or torch's generator) and i, so
        equal prompts get different answers. Raises DataError for a prompt that does not fit.
        """
        for i, ids in enumerate(prompt_ids):
            error = self._refusal(ids, params)
            if error:
                raise DataError(f"prompt {i}: {error}")
        chosen = list(seeds) if seeds is not None else rollout_seeds(params, len(prompt_ids))
        known: dict[Any, SamplingParams] = {}
        fitted = [self._fitted(params, ids, known, 0) for ids in prompt_ids]
        out: list[Completion] = []
        for i, group in enumerate(self._groups(prompt_ids, fitted, chosen)):
            if isinstance(group, Exception):
                raise DataError(f"prompt {i}: {in_words(group)}") from group
            out += group
        return out

    def rows(self, prompt: Prompt, params: SamplingParams) -> list[Request]:
        """The ``params.n`` rows that continue a prompt, fitted to the room after it, for ``Live.submit``.

        Raises DataError for a prompt that cannot be served.
        """
        params = self._turn(prompt, params)
        ids = self.encode(prompt)
        error = self._refusal(ids, params)
        if error:
            raise DataError(error)
        fitted, seed = self._fit(params, self._room(ids)), _seed(params, ids)
        return [Request(ids, fitted, derive_seed(seed, j)) for j in range(params.n)]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Piece]:
        """Pieces of one completion's text as they are sampled; the last piece has the finish reason.

        Text that may still turn into a stop string or is an unfinished character is held back.
        Raises DataError for a prompt that cannot be served.
        """
        from tutelage.engine.stream import stream_pieces

        yield from stream_pieces(self, self.rows(prompt, replace(params or SamplingParams(), n=1))[0])

    def score(self, pairs: Sequence[tuple[Any, Any]], max_tokens: int = 2048, top: int = 0) -> list[Score]:
        """Log-probability of each continuation given its context (each a str or token ids), in order.

        Strings are encoded together, so that the boundary's tokens are those of the whole text; ``max_tokens`` is the
        padded size of one forward. An empty context starts at the bos token (else eos). Encoder-decoders encode the two
        apart (see ``score_answers``); a masked LM gives pseudo-log-likelihoods (see ``score_masked``). In place of a
        context both take a Cloze, whose gap the continuation fills. ``top``: of causal LMs, so many alternatives of
        each token.
        """
        if self.kind == "causal":
            return score_pairs(self, pairs, max_tokens, top)
        if top:
            raise DataError(f"alternatives of scored tokens are not there for {WORDS[self.kind]}")
        return (score_masked if self.kind == "masked" else score_answers)(self, pairs, max_tokens)

    def _refusal(self, ids: Sequence[int], params: SamplingParams) -> str | None:
        if self.kind == "masked":
            return NO_GENERATION
        if not ids:
            return "the prompt is empty"
        limit = self.context_length
        if self._room(ids) < min(params.max_tokens, 1) or len(ids) > limit:
            return f"the prompt has {len(ids)} tokens and the model's context is {limit}"
        vocab = vocabulary(self.model)
        if min(ids) < 0 or max(ids) >= vocab:
            return f"the prompt has token ids outside 0..{vocab - 1}"
        for name in ("banned_tokens", "stop_tokens", "logit_bias"):
            odd = [token for token in getattr(params, name) or () if not 0 <= token < vocab]
            if odd:
                return f"{name} has the token {odd[0]}, which is outside 0..{vocab - 1}"
        if len(set(params.banned_tokens)) == vocab:
            return "banned_tokens names every token of the vocabulary"
        if params.prompt_logprobs is not None and self.kind == "seq2seq":
            return "an encoder-decoder gives its prompt no log-probs; leave prompt_logprobs out"
        if self.support.plans:
            return self._scheduler.never_fits(len(ids), params.n, min(params.max_tokens, self._room(ids)))
        return None

    def _room(self, ids: Sequence[int]) -> int:
        """Most new tokens after a prompt. A decoder of its own begins with one token, whatever the prompt."""
        return self.context_length - (1 if self.kind == "seq2seq" else len(ids))

    def _groups(
        self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams], seeds: Sequence[int]
    ) -> list[list[Completion] | Exception]:
        """Completions of each prompt, or what went wrong with it."""
        groups = [
            [Request(ids, wanted, derive_seed(seed, j)) for j in range(wanted.n)]
            for ids, wanted, seed in zip(prompts, params, seeds, strict=True)
        ]
        texts = self.texts
        return [texts.completions(group, found) for group, found in zip(groups, self.decode(groups), strict=True)]

    def decode(
        self, groups: Sequence[Sequence[Request]], cancelled: threading.Event | None = None
    ) -> list[list[Finished]]:
        """What each group's requests (rows of one prompt) come to; Cancelled if the event is set before the end."""
        self._rules.eos = self.eos_tokens
        with torch.inference_mode(), evaluating(self.model), self.autocast():
            if not self.support.plans:
                return self._static(groups, cancelled)
            session = Session(groups, cancelled, self.on_done)
            self.counts.add(sum(len(r.prompt) for g in groups for r in g), session.prompt_tokens)
            self._scheduler.run(session)
        if session.error is not None:
            raise session.error
        if session.left:
            raise Cancelled
        return session.results  # type: ignore[return-value]

    @functools.cached_property
    def support(self) -> Support:
        """Whether the model follows attention plans, and what its keys and values take."""
        if self.kind != "causal":  # nothing was expected, so nothing is tried or logged
            return Support(False, f"it is {WORDS[self.kind]}")
        with self.autocast():
            return support(self.model)

    @functools.cached_property
    def texts(self) -> Texts:
        return Texts(self.tokenizer, apart=self.kind == "seq2seq")

    @functools.cached_property
    def _rules(self) -> Rules:
        return Rules(self.eos_tokens, self.texts.has_stop, self.device)

    @functools.cached_property
    def _scheduler(self) -> Scheduler:
        limits = (self.support.token_bytes, self.kv_bytes, self.max_rows, self.max_tokens)
        return Scheduler(
            self.model, self._rules, *limits, compiled=self.compiled, prefix_budget=self.prefix_bytes
        )  # fmt: skip

    def _static(
        self, groups: Sequence[Sequence[Request]], cancelled: threading.Event | None
    ) -> list[list[Finished]]:
        """Batches of at most ``max_rows`` rows, prompts of like length together."""
        pad = getattr(self.tokenizer, "pad_token_id", None) or 0
        prompted = learned_prompt(self.model) is not None
        made = Seq2SeqDecoder if self.kind == "seq2seq" else PromptDecoder if prompted else BatchDecoder
        decoder = made(self.model, pad, self._rules)
        order = sorted(range(len(groups)), key=lambda i: len(groups[i][0].prompt))
        done: list[list[Finished]] = [[] for _ in groups]
        with self.lock, inference_attention(self.model):
            for batch in batches_of(order, groups, self.max_rows, self.max_batch_tokens, even=prompted):
                finished = iter(decoder.run([groups[i] for i in batch], cancelled))
                for i in batch:
                    done[i] = [next(finished) for _ in groups[i]]
                if self.on_done:
                    self.on_done(len(batch))
        return done

    def _fit(self, params: SamplingParams, room: int) -> SamplingParams:
        """Parameters with at most ``room`` new tokens, and stop strings that are special tokens as stop tokens.

        Texts are decoded without special tokens, so such a string would never be found in them.
        """
        changes: dict[str, Any] = {}
        if params.max_tokens > room:
            changes["max_tokens"] = room
        special = set(getattr(self.tokenizer, "all_special_tokens", None) or ()) if params.stop else set()
        named = [stop for stop in params.stop if stop in special]
        if named:
            ids = self.tokenizer.convert_tokens_to_ids(named)
            changes["stop"] = tuple(stop for stop in params.stop if stop not in special)
            changes["stop_tokens"] = (*params.stop_tokens, *ids)
        return replace(params, **changes) if changes else params

    def complete(self, request: Request, cancelled: threading.Event | None = None) -> Completion:
        """One completion of one request; Cancelled if the event is set before it has ended.

        Raises what went wrong with its text or its reader.
        """
        request = replace(request, params=self._fit(request.params, self._room(request.prompt)))
        return self.texts.completion(request, self.decode([[request]], cancelled)[0][0])

    def autocast(self) -> Any:
        """The bfloat16 autocast context if the engine was asked for it."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.bf16 else nullcontext()

    def text_of(self, tokens: Sequence[int]) -> str:
        """Text of completion tokens without special tokens."""
        return self.texts.of(tokens)


def rollout_seeds(params: SamplingParams, count: int) -> list[int]:
    """The seeds of `count` prompts of one rollout: one that is shared out draws what it draws in one piece."""
    base = _seed(params, ())
    return [derive_seed(base, i + 1) for i in range(count)]


def _seed(params: SamplingParams, ids: Sequence[int]) -> int:
    if params.seed is None:
        return int(torch.randint(-(2**63), 2**63 - 1, ()))
    # the prompt is mixed in, so that one seed for many prompts does not give them all the same uniforms
    return derive_seed(params.seed, zlib.crc32(array("q", ids).tobytes()))
