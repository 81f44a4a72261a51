"""A scripted engine, a tiny random language model, and reviews as examples, for the tests of order and search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from tutelage.engine import Completion, LocalEngine, Output, Score
from tutelage.icl.examples import Example
from tutelage.icl.prompts import Format, Prompter


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


REVIEWS = Format(input="Review: {text}", output="\nSentiment: {answer}", separator="\n\n")
"""As Lu et al. write them."""


def review(text: str, gold: int = 0) -> Example:
    options = ("negative", "positive")
    return Example({"text": text}, text, options, gold, options[gold])


def context_of(form: Format, demonstrations: Sequence[Example], query: Example) -> str:
    """The whole prompt up to the label, without the blank at its end."""
    return str(Prompter(form).prompt(demonstrations, query)).rstrip()


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
