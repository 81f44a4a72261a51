"""What the studies share: tokenizers of made-up words, figures."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tutelage.core.atomic import write_folder
from tutelage.report.plots import Panel, draw


def save_figure(folder: Path, panels: Sequence[Panel], columns: int = 3) -> Path:
    """Write the panels as figures/study.png in the run directory, whole or not at all."""
    png = base64.b64decode(draw(list(panels), columns))
    return write_folder(folder / "figures", lambda aside: (aside / "study.png").write_bytes(png)) / "study.png"


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
