"""A scripted engine, a tiny random language model, and the plainest task format, for the tests of order and search."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from tutelage.engine import Completion, LocalEngine, Output, Score
from tutelage.icl.examples import Example


class ScriptedEngine:
    """Answers by functions of the prompt, and counts the calls."""

    def __init__(
        self,
        says: Callable[[str], Sequence[str]] | None = None,
        scores: Callable[[str, str], Sequence[float]] | None = None,
    ) -> None:
        self.says, self.scores = says, scores
        self.generated: list[list[Any]] = []
        self.params: list[Any] = []
        self.scored: list[list[tuple[str, str]]] = []

    def generate(self, prompts: Sequence[Any], params: Any) -> list[Output]:
        self.generated.append(list(prompts))
        self.params.append(params)
        return [Output((), tuple(Completion(t, (), (), "stop") for t in self.says(p))) for p in prompts]

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        self.scored.append(list(pairs))
        return [Score(sum(parts), tuple(parts)) for parts in (self.scores(*pair) for pair in pairs)]


@dataclass
class Form:
    """Review and sentiment, as Lu et al. write them."""

    instruction: str = ""
    separator: str = "\n\n"

    def query(self, example: Example) -> str:
        return f"Review: {example.fields['sentence']}\nSentiment:"

    def demonstration(self, example: Example) -> str:
        return f"{self.query(example)} {example.options[example.gold]}"

    def parse(self, text: str) -> list[str]:
        return re.findall(r"Review: ?(.*?)\nSentiment:", text)


def review(text: str, gold: int = 0) -> Example:
    options = ("negative", "positive")
    return Example({"sentence": text}, text, options, gold, options[gold])


def scorer_of(engine: Any, form: Form) -> Callable[[Sequence[Sequence[Example]], Sequence[Example]], np.ndarray]:
    """The contract's scorer, in one engine call."""

    def scorer(sets: Sequence[Sequence[Example]], queries: Sequence[Example]) -> np.ndarray:
        pairs = [(context_of(form, chosen, q), f" {o}") for chosen in sets for q in queries for o in q.options]
        found = [score.logprob for score in engine.score(pairs)]
        return np.array(found).reshape(len(sets), len(queries), -1)

    return scorer


def context_of(form: Form, demonstrations: Sequence[Example], query: Example) -> str:
    return form.separator.join([*(form.demonstration(d) for d in demonstrations), form.query(query)])


def make_tokenizer(extra: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 320 tokens, `extra` among its special ones."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<mask>", *extra]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(["the answer is the opposite of the input and the output"] * 9, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", mask_token="<mask>"
    )


def tiny_engine(context: int = 1024) -> LocalEngine:
    """A random Llama, sharpened so that its predictions are not all alike."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=context, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name and weight.ndim > 1:
                weight.mul_(3)
    return LocalEngine(model, make_tokenizer())


def token_logprobs(engine: LocalEngine, context: str, continuation: str) -> list[float]:
    """Log-probs of the continuation's tokens by one plain forward of the whole text."""
    left = engine.tokenizer(context)["input_ids"] if context else []
    whole = engine.tokenizer(context + continuation)["input_ids"]
    whole = whole if left else [engine.tokenizer.bos_token_id, *whole]
    start = len(left) or 1
    with torch.no_grad():
        logprobs = engine.model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return [float(logprobs[i - 1, whole[i]]) for i in range(start, len(whole))]
