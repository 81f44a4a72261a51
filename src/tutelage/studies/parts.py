"""What the studies share: a training as a run directory of its own, tokenizers of made-up words, figures."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tutelage.core.atomic import write_folder
from tutelage.core.errors import Interrupted
from tutelage.core.rundir import RunDir
from tutelage.core.runtime import set_threads
from tutelage.report.plots import Panel, draw
from tutelage.report.read import read_json


def part(run: RunDir, name: str, config: Mapping[str, Any], work: Callable[[RunDir], dict[str, Any]]) -> dict[str, Any]:
    """`work(inner run directory)` in the folder `name` of the study's: finished, it is not done again; else it resumes.

    Returns the part's summary. Whatever `work` raises marks the part and is raised again.
    """
    inner = RunDir(run.path / name, f"{run.kind}-{name}", config)
    if inner.open() == "finished":
        inner.close()
        return read_json(inner.path / "summary.json")
    try:
        inner.note(device="cpu", threads=set_threads(inner.recall("threads")))
        summary = work(inner)
        inner.finish(summary)
    except BaseException as error:
        inner.fail(error, "stopped" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed")
        raise
    finally:
        inner.close()
    return summary


def save_figure(folder: Path, panels: Sequence[Panel], columns: int = 3) -> Path:
    """Write the panels as figures/study.png in the run directory, whole or not at all."""
    png = base64.b64decode(draw(list(panels), columns))
    return write_folder(folder / "figures", lambda aside: (aside / "study.png").write_bytes(png)) / "study.png"


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token a word, ids in the order given; <|pad|> and <|endoftext|> (also the beginning) come behind them."""
    names = [*words, "<|pad|>", "<|endoftext|>"]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<|pad|>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
