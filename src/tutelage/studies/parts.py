"""What the studies share: a training as a run directory of its own, tokenizers of made-up words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tutelage.core.config import StageConfig
from tutelage.core.errors import Interrupted
from tutelage.core.rundir import RunDir
from tutelage.core.runtime import reseed, set_threads
from tutelage.report.read import read_json

C = TypeVar("C", bound=StageConfig)


def part(
    run: RunDir,
    name: str,
    config: Mapping[str, Any],
    work: Callable[[RunDir], dict[str, Any]],
    inputs: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """`work(inner run directory)` in the folder `name` of the study's: finished, it is not done again; else it resumes.

    `inputs` as RunDir has them: keys of the configuration that name files or runs, which count by their contents.
    Returns the part's summary. Whatever `work` raises marks the part and is raised again.
    """
    inner = RunDir(run.path / name, f"{run.kind}-{name}", config, inputs)
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


def stage(run: RunDir, name: str, config: C, work: Callable[[C, RunDir], dict[str, Any]]) -> dict[str, Any]:
    """A stage's `run` as a part of the study; its summary."""

    def seeded(inner: RunDir) -> dict[str, Any]:
        reseed(config.seed, name)
        return work(config, inner)

    given = {key: getattr(config, key, None) for key in ("tokenizer", "data", "model", "held_out")}
    inputs = {key: path for key, path in given.items() if isinstance(path, str) and Path(path).exists()}
    return part(run, name, config.model_dump(mode="json"), seeded, inputs)


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token a word, ids in the order given; <|pad|> and <|endoftext|> (also the beginning) come behind them."""
    names = [*words, "<|pad|>", "<|endoftext|>"]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<|pad|>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
