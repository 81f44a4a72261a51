"""Instruction tuning's data: many tasks under many templates become rows for `sft`, in the proportions of Flan."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from tutelage.core.config import StageConfig
from tutelage.core.progress import Progress
from tutelage.core.rowfile import RowFile
from tutelage.core.rundir import RunDir
from tutelage.icl.fitting import Fitting
from tutelage.icl.mixture import DataSet, Forms, Mixture, chosen, counted, data_set, learnable, ready_sets
from tutelage.icl.ready import ready_tasks
from tutelage.icl.tasks import files_of, load_task
from tutelage.model.hub import load_tokenizer

CHAINS = 0.05
"""Chains of thought in the Flan collection (flan/v2/run_example.py), where tasks have them."""
BATCH = 256


class MixtureConfig(StageConfig):
    tasks: list[str] = []
    """Built-in tasks and descriptions (task.toml), as `icl` takes them; their own format and all their templates."""
    data: str | None = None
    """Folder with the built-in tasks' files (default: $TUTELAGE_DATA)."""
    ready: str | None = None
    """A file or folder of rows {"prompt", "completion"} whose templates are applied already (P3, T0): a file for each
    template, its name beginning with the data set's."""
    only: list[str] = []
    """Patterns of the clusters, data sets or templates that are taken; empty: all."""
    without: list[str] = []
    """Patterns of those that are left out, e.g. [paraphrase]: the clusters that are measured on."""
    rows: int = Field(20_000, ge=1)
    """Rows to make. Where a data set has fewer examples than its share, they come again under other templates."""
    cap: int = Field(30_000, ge=1)
    """At most this many examples of a data set (FLAN)."""
    rate: int = Field(3_000, ge=1)
    """A data set of n examples weighs min(n, rate) (Raffel et al. 2020; 3000 is FLAN's)."""
    few_shot: float = Field(0.5, ge=0, le=1)
    """Share of the rows with demonstrations (Flan collection: half)."""
    shots: int = Field(5, ge=1)
    """Most demonstrations of such a row; it has 1 to this many."""
    options: float = Field(0.5, ge=0, le=1)
    """Share of the rows that list the answers, where there are some (Flan collection: half)."""
    turned: float = Field(0.3, ge=0, le=1)
    """Share of the rows turned around: the input is written from the answer (FLAN: up to three of ten templates)."""
    chain_of_thought: float | None = Field(None, ge=0, le=1)
    """Share of the rows whose answer is reasoned out; None: 0.05 where tasks have chains of thought, else 0."""
    tokenizer: str | None = None
    """The model to be trained, or its tokenizer: rows are then made to fit `max_length`."""
    max_length: int = Field(512, ge=32)
    """Tokens of a row. Demonstrations go first, then the middle of the input; an answer of more than half is left out.
    """

    @model_validator(mode="after")
    def _something(self) -> MixtureConfig:
        if not self.tasks and not self.ready:
            raise ValueError("nothing to mix: give tasks=[sst2,agnews] with data=FOLDER, or ready=FOLDER")
        return self

    def named_files(self) -> dict[str, str]:
        """Descriptions, and the training files that they or the built-in tasks name."""
        out: dict[str, str] = {}
        for number, name in enumerate(self.tasks):
            if name.endswith(".toml"):
                out[f"tasks.{number}"] = name
            files = files_of(load_task(name, self.data).train)
            out |= {f"task {number} file {i}": file for i, file in enumerate(files)}
        return out


def run(config: MixtureConfig, run: RunDir) -> dict[str, Any]:
    """Write sft.jsonl; what it is made of stands in summary.json and in the manifest."""
    sets, left_out = _sets(config)
    fitting = Fitting(load_tokenizer(config.tokenizer), config.max_length) if config.tokenizer else Fitting()
    sets, gone = learnable(chosen(sets, config.only, config.without), fitting)
    mixture = Mixture(sets, config.rows, config.rate, _forms(config, sets), fitting, config.seed)
    file = RowFile(run.path / "sft.jsonl", "mixture", {"run": run.fingerprint})
    if not file.open(config.rows, BATCH):
        file.begin()
        with Progress(run.path.name, "rows", config.rows - file.rows) as progress:
            made = progress.over(mixture.made(file.rows))
            while rows := list(islice(made, BATCH)):
                file.append(rows)
        file.finish()
    file.close()
    found = {**counted(_rows(file.path)), "answers_left_out": gone, "left_out": left_out}
    run.note(mixture=found)
    return found


def _sets(config: MixtureConfig) -> tuple[list[DataSet], dict[str, str]]:
    """The data sets of both kinds, and the files that had nothing to learn."""
    sets = [data_set(load_task(name, config.data), config.cap, config.seed) for name in config.tasks]
    if not config.ready:
        return sets, {}
    found = ready_tasks(config.ready)
    return [*sets, *ready_sets(found.tasks, config.cap, config.seed)], found.left_out


def _forms(config: MixtureConfig, sets: list[DataSet]) -> Forms:
    chains = config.chain_of_thought
    if chains is None:
        chains = CHAINS if any(d.reasoned for d in sets) else 0.0
    return Forms(config.few_shot, config.shots, config.options, config.turned, chains)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
