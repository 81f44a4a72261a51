"""Constitutional AI's supervised stage (Bai et al. 2022, sec. 3): a model answers red-team prompts, criticises and
revises its own answers by sampled principles; the revisions become rows for `sft`, beside answers to other prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, Literal

from pydantic import Field

from tutelage.core.atomic import write_atomic
from tutelage.core.config import StageConfig
from tutelage.core.errors import DataError
from tutelage.core.progress import Progress
from tutelage.core.rowfile import RowFile
from tutelage.core.rundir import RunDir, read_jsonl_tolerant
from tutelage.core.runtime import stream_seed
from tutelage.engine import SamplingParams, load
from tutelage.feedback.asking import Asker, Style
from tutelage.feedback.conduct import judge_named
from tutelage.feedback.constitution import load_constitution
from tutelage.feedback.revision import Revising, revise_rows, sft_rows, texts_of_round
from tutelage.text.chat import as_messages
from tutelage.train.conduct import summarise
from tutelage.train.sources import is_world, prompts

Row = dict[str, Any]


class ConstitutionConfig(StageConfig):
    model: str
    """The helpful-only model: a run directory, folder, hub id, or an OpenAI-compatible server's http://.../v1."""
    served: str | None = None
    """The model's name on a server."""
    constitution: str = "general"
    """general (ours), schoolroom (the embedded world's), my.toml, or the folder of the paper's .json files."""
    data: str = "schoolroom:charter:harm"
    """Red-team prompts: a file or folder, or the embedded world."""
    prompts: int = Field(1000, ge=1)
    """At most this many of them."""
    rounds: int = Field(4, ge=1)
    """Critiques and revisions of each answer, each by a principle of its own."""
    keep: Literal["all", "last"] = "all"
    """Which revisions become rows for `sft`."""
    helpful: str | None = None
    """Harmless prompts, which are answered without critique and mixed in: without them helpfulness is forgotten."""
    helpful_prompts: int = Field(1000, ge=1)
    """At most this many of them."""
    helpful_samples: int = Field(2, ge=1)
    """Answers to each."""
    style: Style = "auto"
    """chat: requests are quoted in a user's message; text: a base model continues the transcript; auto: chat where the
    model has a chat template, and for servers."""
    examples: int = Field(100, ge=0)
    """Worked examples in front of each request, at most; as many as the context has room for."""
    temperature: float = Field(1.0, ge=0)
    max_tokens: int = Field(64, ge=1)
    """Longest answer or revision."""
    critique_tokens: int = Field(64, ge=1)
    """Longest critique."""
    batch: int = Field(128, ge=1)
    """Prompts taken through all rounds together and then written; a kill loses at most these."""
    measure: int = Field(0, ge=0)
    """So many held-out prompts of `data`, and as many of `helpful`, go through the same rounds and are judged after
    each."""
    judge: str | None = None
    """Who judges them: world (the embedded world's program, where the data is its), phrases (whether they decline), a
    run directory of `reward`, or file.py:function. By default the first that can."""


def run(config: ConstitutionConfig, run: RunDir) -> dict[str, Any]:
    """Write revisions.jsonl (all rounds), helpful.jsonl, measured.jsonl, and of them sft.jsonl and metrics.jsonl."""
    constitution = load_constitution(config.constitution)
    engine = load(config.model, model=config.served)
    asker = Asker(engine, constitution.format, config.style)
    settings = Revising(
        config.rounds, config.temperature, config.max_tokens, config.critique_tokens, config.examples, config.seed
    )

    def revised(name: str) -> Callable[[Sequence[Row], int], list[Row]]:
        return lambda rows, first: revise_rows(asker, constitution, rows, settings, first, name)

    asked = 1 + 2 * config.rounds
    red = _prompts(config, config.data, "train", config.prompts, run)
    made = _rows(run, config, "revisions", red, revised("revisions"), asker, asked)
    helped = []
    if config.helpful:
        harmless = _prompts(config, config.helpful, "train", config.helpful_prompts, run)
        helped = _rows(run, config, "helpful", harmless, lambda rows, n: _answer(asker, rows, config, n), asker, 1)
    rows = sft_rows(made, config.keep) + [
        {"prompt": row["prompt"], "completion": text} for row in helped for text in row.get("answers", ()) if text
    ]
    if not rows:
        first = next((row["error"] for row in made if "error" in row), "every revision is empty")
        raise DataError(f"{config.data}: no prompt came through a round ({first})")
    write_atomic(run.path / "sft.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    facts = {"revised": len(made), "errors": sum("error" in row for row in made), "helpful_rows": len(helped),
             "sft_rows": len(rows), "changed_by_round": _changed(made, config.rounds)}  # fmt: skip
    return {**facts, **_measured(config, run, asker, revised("measured"), asked)}


def _prompts(config: ConstitutionConfig, data: str, split: str, limit: int, run: RunDir) -> list[Row]:
    return prompts(data, split, limit, stream_seed(config.seed, "constitution", data) % 2**31, run.bad_rows)


def _rows(
    run: RunDir, config: ConstitutionConfig, name: str, rows: Sequence[Row],
    make: Callable[[Sequence[Row], int], list[Row]], asker: Asker, asked: int,
) -> list[Row]:  # fmt: skip
    """`make` over the rows, `config.batch` at a time, into NAME.jsonl; what is written already is not made again.

    A batch is made whole or not at all, so that a resumed file has the rows of an unbroken one.
    """
    identity = {"run": run.fingerprint, "rows": len(rows)}
    with closing(RowFile(run.path / f"{name}.jsonl", "constitution", identity)) as file:
        if not file.open(len(rows), config.batch):
            file.begin(threads=run.recall("threads"))
            with Progress(f"{run.path.name} {name}", "requests", asked * (len(rows) - file.rows)) as progress:
                asker.engine.on_done = progress.add
                while file.rows < len(rows):
                    part = rows[file.rows : file.rows + config.batch]
                    file.append(make(part, file.rows))
                asker.engine.on_done = None
            file.finish()
    return list(read_jsonl_tolerant(run.path / f"{name}.jsonl"))


def _answer(asker: Asker, rows: Sequence[Row], config: ConstitutionConfig, first: int) -> list[Row]:
    """The rows with "answers", or "error"."""
    params = [
        SamplingParams(
            config.max_tokens, config.temperature, n=config.helpful_samples, stop=asker.stops(),
            seed=stream_seed(config.seed, "constitution", "helpful", first + i) % 2**31,
        )
        for i in range(len(rows))
    ]  # fmt: skip
    outputs = asker.answers([as_messages({"prompt": row["prompt"]}) for row in rows], params)
    return [
        {**row, "error": o.error} if o.error else {**row, "answers": [c.text.strip() for c in o.completions]}
        for row, o in zip(rows, outputs, strict=True)
    ]


def _changed(rows: Sequence[Row], rounds: int) -> list[float]:
    """Share of rows whose answer each round changed."""
    whole = [row for row in rows if "error" not in row]
    return [
        sum(texts_of_round(row, turn) != texts_of_round(row, turn - 1) for row in whole) / max(1, len(whole))
        for turn in range(1, rounds + 1)
    ]


def _measured(
    config: ConstitutionConfig, run: RunDir, asker: Asker, make: Callable[[Sequence[Row], int], list[Row]], asked: int
) -> dict[str, Any]:
    """Held-out prompts through the same rounds, judged after each: rows of metrics.jsonl by round (0 is the first
    answer), and the last round's for the summary."""
    if not config.measure:
        return {}
    rows = [{**row, "harmful": True} for row in _prompts(config, config.data, "heldout", config.measure, run)]
    if config.helpful:
        harmless = _prompts(config, config.helpful, "heldout", config.measure, run)
        rows += [{**row, "harmful": False} for row in harmless]
    judge = judge_named(config.judge, is_world(config.data))
    made = [row for row in _rows(run, config, "measured", rows, make, asker, asked) if "error" not in row]
    by_round = []
    for turn in range(config.rounds + 1):
        by_round.append(summarise(judge(made, [texts_of_round(row, turn) for row in made])))
    lines = [json.dumps({"step": turn, **measured}) for turn, measured in enumerate(by_round)]
    write_atomic(run.path / "metrics.jsonl", "\n".join(lines) + "\n")
    first = {f"{key}_first": value for key, value in by_round[0].items() if not key.endswith("_n")}
    return {**by_round[-1], **first, "by_round": by_round}

