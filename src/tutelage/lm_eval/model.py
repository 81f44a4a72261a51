"""lm-eval's Hugging Face backend with the computing done by our engine: same arguments, same tokens, same numbers.

Loading, tokenisation, chat templates and rolling windows are lm-eval's own (the class is inherited); log-likelihoods
and generation go to LocalEngine. Needs lm-eval 0.4.13 (``pip install 'tutelage[eval]'``).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, normalize_gen_kwargs, postprocess_generated_text
from tqdm import tqdm

from tutelage.core.errors import ConfigError, DataError
from tutelage.engine.local import LocalEngine
from tutelage.engine.requests import Completion, SamplingParams, Score
from tutelage.model.hub import model_source
from tutelage.model.kinds import AUTO, config_kind

log = logging.getLogger("tutelage")

CHUNK = 4096
"""Requests scored in one call of the engine: between two, answers are written to lm-eval's cache."""
ENGINE = ("max_rows", "kv_bytes", "max_tokens", "max_batch_tokens")
_SAMPLING = ("top_k", "top_p", "min_p", "repetition_penalty")
_IDLE: dict[str, Any] = {"num_beams": 1, "num_return_sequences": 1, "use_cache": True, "early_stopping": False}
"""Generation arguments of transformers that are fine at this value, since it changes nothing."""


@register_model("tutelage")
class EngineLM(HFLM):  # type: ignore[misc]
    """``--model tutelage``: the arguments of lm-eval's ``hf``, and those of LocalEngine.

    ``pretrained`` may also be a run directory (its ``model/``) or a live model. ``max_rows``, ``kv_bytes``,
    ``max_tokens`` and ``max_batch_tokens`` are LocalEngine's; ``mixed_precision_dtype=bfloat16`` is its ``bf16``.
    ``batch_size`` is accepted and not needed: the engine fills its batches by tokens. One device only.
    """

    def __init__(self, pretrained: Any, device: str | None = None, **kwargs: Any) -> None:
        """Raises ConfigError for arguments that one engine on one device cannot honour."""
        for name in ("parallelize", "tp_plan", "device_map"):
            if kwargs.get(name):
                raise ConfigError(f"model_args: {name} splits a model over devices; tutelage uses one, leave it out")
        precision = kwargs.get("mixed_precision_dtype")
        if precision not in (None, "bfloat16", torch.bfloat16):
            raise ConfigError(f"model_args: mixed_precision_dtype must be bfloat16 or left out, got {precision!r}")
        limits: dict[str, Any] = {name: int(kwargs.pop(name)) for name in ENGINE if name in kwargs}
        if isinstance(pretrained, str):
            pretrained = model_source(pretrained)
        super().__init__(pretrained, device=device or ("cuda" if torch.cuda.is_available() else "cpu"), **kwargs)
        self.engine = LocalEngine(self.model, self.tokenizer, bf16=precision is not None, **limits)
        if self.max_length > self.engine.context_length:
            raise ConfigError(
                f"model_args: max_length={self.max_length} is more than the model's {self.engine.context_length} tokens"
            )

    def _get_backend(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super()._get_backend(config, *args, **kwargs)
        if config_kind(config) == "masked":
            self.AUTO_MODEL_CLASS = AUTO["masked"]

    @property
    def batch_size(self) -> int:
        """Rolling windows are handed over in batches of this size: all of them."""
        return 1 << 30

    # log-likelihoods

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability, is greedy) of each request's continuation; a masked LM's is a pseudo-log-likelihood."""
        if self.engine.kind != "masked":
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        # its special tokens stand around both texts, which pairs of token ids cannot say
        out = []
        for start in tqdm(range(0, len(requests), CHUNK), desc="Running loglikelihood requests", disable=disable_tqdm):
            pairs = [request.args for request in requests[start : start + CHUNK]]
            for pair, score in zip(pairs, self.engine.score(pairs), strict=True):
                out.append(self._answer(score, pair))
        return out

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each text, in windows of the model's context."""
        if self.engine.kind == "masked":
            raise ConfigError(
                "a masked LM gives a text no log-probability; leave out tasks with loglikelihood_rolling (perplexities)"
            )
        return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

    def _answer(self, score: Score, request: Any) -> tuple[float, bool]:
        if score.error:
            raise DataError(f"lm-eval request {str(request)[:80]!r}: {score.error}")
        answer = (score.logprob, score.is_greedy)
        if request is not None:
            self.cache_hook.add_partial("loglikelihood", request, answer)
        return answer

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [self._fitted(left, right) for _, left, right in requests]
        cut = sum(len(new) < len(left) for (_, left, _), (new, _) in zip(requests, pairs, strict=True))
        if cut:
            log.warning("%d of %d contexts are cut from the left to fit %d tokens", cut, len(pairs), self.max_length)
        out: list[Any] = [None] * len(requests)
        # neighbours in the trie stay neighbours, so that little is computed twice where chunks meet
        order = sorted(range(len(pairs)), key=lambda i: (*pairs[i][0], *pairs[i][1]))
        with tqdm(
            total=len(requests), disable=disable_tqdm or self.rank != 0, desc="Running loglikelihood requests"
        ) as bar:
            for start in range(0, len(order), CHUNK):
                chunk = order[start : start + CHUNK]
                for i, score in zip(chunk, self.engine.score([pairs[i] for i in chunk]), strict=True):
                    out[i] = self._answer(score, requests[i][0])
                bar.update(len(chunk))
        return out

    def _fitted(self, left: list[int], right: list[int]) -> tuple[list[int], list[int]]:
        """Context and continuation cut as lm-eval cuts them: from the left, so that inputs fit ``max_length``."""
        limit = self.max_length
        if self.backend == "seq2seq":
            return left[-limit:], right[-limit:]
        if len(right) > limit:
            raise DataError(f"a continuation has {len(right)} tokens and the model takes {limit} (max_length)")
        return left[max(len(left) + len(right) - limit - 1, 0) :], right

    # generation

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The text that continues each request's context, up to its stop strings."""
        eos = self.tok_decode(self.eot_token_id, skip_special_tokens=False) if self.eot_token_id is not None else None
        known: dict[str, tuple[dict[str, Any], list[str]]] = {}
        prompts, params, stops = [], [], []
        shared: dict[tuple[str, int], SamplingParams] = {}
        cut = 0
        for context, arguments in (request.args for request in requests):
            key = json.dumps(arguments, sort_keys=True, default=str)
            if key not in known:
                wanted = normalize_gen_kwargs(arguments, self.max_gen_toks)
                known[key] = wanted, handle_stop_sequences(wanted.pop("until", None), eos=eos)
            wanted, until = known[key]
            whole = self._prompt(context)
            ids = whole[-self._room(wanted["max_gen_toks"]) :]
            cut += len(ids) < len(whole)
            most = int(wanted.get("max_length", len(ids) + wanted["max_gen_toks"])) - len(ids)
            if (key, most) not in shared:
                shared[key, most] = self._params(wanted, until, max(most, 0))
            prompts.append(ids)
            params.append(shared[key, most])
            stops.append(until)
        if cut:
            log.warning("%d of %d prompts are cut from the left to leave room for the answer", cut, len(prompts))
        with tqdm(
            total=len(requests), disable=disable_tqdm or self.rank != 0, desc="Running generate_until requests"
        ) as bar:
            self.engine.on_done = bar.update
            try:
                outputs = self.engine.generate(prompts, params)
            finally:
                self.engine.on_done = None
        texts = []
        for request, output, until in zip(requests, outputs, stops, strict=True):
            if output.error:
                raise DataError(f"lm-eval request {request.args[0][:80]!r}: {output.error}")
            texts.append(self._text(output.completions[0], until))
            self.cache_hook.add_partial("generate_until", request.args, texts[-1])
        return texts

    def _room(self, new: int) -> int:
        """Most tokens of a prompt that leave room for `new`; an encoder has room of its own."""
        room = self.max_length - (new if self.backend == "causal" else 0)
        if room <= 0:
            raise ConfigError(f"max_gen_toks={new} leaves no room for a prompt: max_length is {self.max_length}")
        return int(room)

    def _prompt(self, context: str) -> list[int]:
        special: dict[str, bool] = {}
        if self.backend == "causal":
            if has_bos_prefix(context, getattr(self.tokenizer, "bos_token", None)):
                special = {"add_special_tokens": False}
            elif self.add_bos_token is not None:
                special = {"add_special_tokens": self.add_bos_token}
        return list(self.tokenizer(context, truncation=self.truncation, **special)["input_ids"])

    def _params(self, wanted: dict[str, Any], until: list[str], most: int) -> SamplingParams:
        sampled = bool(wanted["do_sample"]) and float(wanted.get("temperature", 0.0)) > 0
        given = {k: v for k, v in wanted.items() if k not in ("do_sample", "temperature", "max_gen_toks", "max_length")}
        unknown = [k for k, v in given.items() if k not in _SAMPLING and _IDLE.get(k, ...) != v]
        if unknown:
            known = ", ".join(("until", "max_gen_toks", "do_sample", "temperature", *_SAMPLING))
            raise ConfigError(f"generation_kwargs: {unknown[0]}={given[unknown[0]]!r} is not supported; known: {known}")
        # as transformers' generate: what is not given comes from the model's generation config
        defaults = {name: getattr(self.model.generation_config, name, None) for name in _SAMPLING}
        if defaults["top_k"] is None:
            defaults["top_k"] = 50
        used = _SAMPLING if sampled else ("repetition_penalty",)
        values = {name: given.get(name, defaults[name]) for name in used}
        return SamplingParams(
            max_tokens=most,
            temperature=float(wanted["temperature"]) if sampled else 0.0,
            stop=tuple(stop for stop in until if stop),
            **{name: value for name, value in values.items() if value is not None},
        )

    def _text(self, completion: Completion, until: list[str]) -> str:
        """A completion's text by lm-eval's rules: decoded by itself, thoughts left out, cut at a stop string."""
        tokens, end = list(completion.tokens), self.think_end_token
        thought = isinstance(end, int) and end in tokens
        if thought:
            tokens = tokens[len(tokens) - tokens[::-1].index(end) :]
        text = self.tok_decode(tokens)
        return postprocess_generated_text(
            text.lstrip() if isinstance(end, int) else text, until, end if isinstance(end, str) else None
        )
