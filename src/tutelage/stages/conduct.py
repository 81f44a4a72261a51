"""Measure how a model behaves: harmful answers, helpfulness, refusals of what is harmless, each with its interval."""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field

from tutelage.core.atomic import write_atomic
from tutelage.core.config import StageConfig
from tutelage.core.errors import DataError
from tutelage.core.rundir import RunDir
from tutelage.core.runtime import stream_seed
from tutelage.engine import SamplingParams, load
from tutelage.feedback.asking import Asker, Style
from tutelage.feedback.conduct import judge_named
from tutelage.feedback.constitution import Format
from tutelage.text.chat import as_messages
from tutelage.train.conduct import summarise
from tutelage.train.sources import is_world, prompts


class ConductConfig(StageConfig):
    model: str
    """A run directory, folder, hub id, or an OpenAI-compatible server's http://.../v1."""
    served: str | None = None
    """The model's name on a server."""
    data: str = "schoolroom:charter:harm"
    """Requests that should be declined: a file or folder, or the embedded world."""
    helpful: str | None = "schoolroom:charter:helpful"
    """Requests that should be answered."""
    prompts: int = Field(400, ge=1)
    """At most this many of either."""
    split: str = "heldout"
    """heldout (a tenth of a file's) | train | all"""
    judge: str | None = None
    """world (the embedded world's program, where the data is its), phrases (whether they decline), a run directory of
    `reward`, or file.py:function. By default the first that can."""
    temperature: float = Field(1.0, ge=0)
    max_tokens: int = Field(64, ge=1)
    """Longest answer."""
    style: Style = "auto"
    """chat | text (a base model continues "Human: .. Assistant:") | auto"""


def run(config: ConductConfig, run: RunDir) -> dict[str, Any]:
    """Answer, judge, and write answers.jsonl; the summary has every measure with its 95% interval."""
    engine = load(config.model, model=config.served)
    asker = Asker(engine, Format(), config.style)
    rows = []
    for data, harmful in ((config.data, True), (config.helpful, False)):
        if data:
            seed = stream_seed(config.seed, "conduct", data) % 2**31
            found = prompts(data, config.split, config.prompts, seed, run.bad_rows)
            rows += [{**row, "harmful": harmful} for row in found]
    judge = judge_named(config.judge, is_world(config.data))
    params = SamplingParams(config.max_tokens, config.temperature, stop=asker.stops(), seed=config.seed)
    outputs = asker.answers([as_messages({"prompt": row["prompt"]}) for row in rows], [params] * len(rows))
    said = [(row, o.text.strip()) for row, o in zip(rows, outputs) if not o.error]
    if not said:
        raise DataError(f"{config.data}: no prompt could be answered ({outputs[0].error})")
    rows, texts = [row for row, _ in said], [text for _, text in said]
    outcomes = judge(rows, texts)
    lines = [{"prompt": r["prompt"], "response": t, **o} for r, t, o in zip(rows, texts, outcomes, strict=True)]
    write_atomic(run.path / "answers.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return {**summarise(outcomes), "errors": len(outputs) - len(said)}
