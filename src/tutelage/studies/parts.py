"""What the studies share: a stage as a part of them, tokenizers of made-up words."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tutelage.core.config import StageConfig
from tutelage.core.rundir import RunDir
from tutelage.core.runtime import reseed
from tutelage.train.inner import part

C = TypeVar("C", bound=StageConfig)


def stage(run: RunDir, name: str, config: C, work: Callable[[C, RunDir], dict[str, Any]]) -> dict[str, Any]:
    """A stage's `run` as a part of the study; its summary."""

    def seeded(inner: RunDir) -> dict[str, Any]:
        reseed(config.seed, name)
        return work(config, inner)

    given = {key: getattr(config, key, None) for key in ("tokenizer", "data", "model", "held_out")}
    inputs = {key: path for key, path in given.items() if isinstance(path, str) and Path(path).exists()}
    return part(run, name, config.model_dump(mode="json"), seeded, inputs)


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token a word, ids in the order given; <|pad|> and <|endoftext|> (also the beginning) come behind them.

    Words stand apart by single blanks. Where "\n" is one of them, line ends are tokens and come back as they were.
    """
    names = [*words, "<|pad|>", "<|endoftext|>"]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<|pad|>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    if "\n" in names:
        backend.pre_tokenizer = pre_tokenizers.Sequence([  # type: ignore[assignment]
            pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed"),
        ])  # fmt: skip
        # WordPiece's decoder puts the blanks between words
        backend.decoder = decoders.Sequence([  # type: ignore[assignment]
            decoders.WordPiece(prefix="##", cleanup=False), decoders.Fuse(), decoders.Replace(Regex(" ?\n ?"), "\n"),
        ])  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
