"""Constitutional AI's feedback (Bai et al. 2022, sec. 4): pairs of a model's answers to red-team prompts, labelled by a
model that chooses by sampled principles; beside people's comparisons of helpfulness they train the preference model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from typing import Any, Literal

from pydantic import Field, field_validator

from tutelage.core.atomic import write_atomic
from tutelage.core.config import StageConfig
from tutelage.core.errors import DataError
from tutelage.core.progress import Progress
from tutelage.core.rowfile import RowFile
from tutelage.core.rundir import RunDir, read_jsonl_tolerant
from tutelage.core.runtime import stream_seed
from tutelage.core.stats import wilson
from tutelage.engine import LocalEngine, RemoteEngine, SamplingParams, load
from tutelage.feedback.asking import Asker, Style
from tutelage.feedback.constitution import Constitution, load_constitution
from tutelage.feedback.labels import Labelling, label_pairs
from tutelage.schoolroom.judge import gold
from tutelage.schoolroom.rows import item_from_row
from tutelage.text.chat import as_messages
from tutelage.train.sources import prompts, rankings

Row = dict[str, Any]


class FeedbackConfig(StageConfig):
    model: str
    """The model whose answers are compared: the one that `sft` made of the revisions, or a server's http://.../v1."""
    served: str | None = None
    """The model's name on a server."""
    judge: str | None = None
    """The model that chooses: a run directory, folder, hub id, or a server's http://.../v1. By default `model`."""
    judge_served: str | None = None
    """The judge's name on a server."""
    constitution: str = "general"
    """general (ours), schoolroom (the embedded world's), my.toml, or the folder of the paper's .json files."""
    data: str = "schoolroom:charter:harm"
    """Prompts: a file or folder, or the embedded world."""
    prompts: int = Field(1000, ge=1)
    """At most this many for training."""
    held_out: int = Field(100, ge=1)
    """At most this many of the held-out part, labelled alike, for the preference model's evaluation."""
    temperature: float = Field(1.0, gt=0)
    """Of the two answers."""
    max_tokens: int = Field(64, ge=1)
    """Longest answer."""
    label: Literal["choice", "reasoning"] = "choice"
    """choice: the options' log-probs at once; reasoning: after a chain of thought, clamped to `clamp`."""
    clamp: tuple[float, float] = (0.4, 0.6)
    """Lowest and highest label after a chain of thought, which makes a model over-confident."""
    principles: int = Field(1, ge=1)
    """Labels by so many different principles are averaged."""
    both_orders: bool = True
    """Ask with either answer first, and average: a liking for the first option then has no effect."""
    votes: int = Field(0, ge=0)
    """Instead of reading log-probs, sample so many letters: for servers that give no log-probs."""
    examples: int = Field(100, ge=0)
    """Worked comparisons in front of each question, at most; as many as the context has room for."""
    reason_tokens: int = Field(128, ge=1)
    """Longest chain of thought."""
    style: Style = "auto"
    """chat: questions are users' messages; text: a base model continues them; auto: chat where there is a template, and
    for servers."""
    mix: str | None = None
    """People's comparisons of helpfulness to mix in: a run directory of `rank`, a file or a folder."""
    mix_rows: int = Field(100_000, ge=1)
    """At most this many of them."""
    batch: int = Field(128, ge=1)
    """Prompts answered and labelled together, and then written; a kill loses at most these."""

    @field_validator("clamp")
    @classmethod
    def _in_order(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] <= 0.5 <= value[1] <= 1:
            raise ValueError("expected [low, high] with 0 <= low <= 0.5 <= high <= 1")
        return value


def run(config: FeedbackConfig, run: RunDir) -> dict[str, Any]:
    """Write labels.jsonl and heldout_labels.jsonl (everything), and of them, mixed with people's comparisons,
    rankings.jsonl and heldout.jsonl, which `reward` takes as those of `rank`."""
    constitution = load_constitution(config.constitution)
    model = load(config.model, model=config.served)
    judge = load(config.judge, model=config.judge_served) if config.judge else model
    parts = (("labels", "train", config.prompts), ("heldout_labels", "heldout", config.held_out))
    found = {
        name: _label(config, run, name, _prompts(config, split, n, run), model, judge, constitution)
        for name, split, n in parts
    }
    human = rankings(config.mix, None, run.bad_rows) if config.mix else ([], [])
    out: dict[str, Any] = {}
    for (name, rows), people, file in zip(found.items(), human, ("rankings", "heldout"), strict=True):
        pairs = [_pair(row) for row in rows if "p_first" in row]
        if not pairs:
            first = next((row["error"] for row in rows if "error" in row), "every two answers to a prompt are equal")
            raise DataError(f"{config.data}: no pair was labelled ({first}); raise temperature or prompts")
        whole = pairs + people[: config.mix_rows]
        write_atomic(run.path / f"{file}.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in whole))
        out |= {f"{name}": len(pairs), f"{file}_mixed_in": len(whole) - len(pairs)}
    return {**out, **_report(found["labels"])}


def _prompts(config: FeedbackConfig, split: str, limit: int, run: RunDir) -> list[Row]:
    return prompts(config.data, split, limit, stream_seed(config.seed, "feedback", split) % 2**31, run.bad_rows)


def _label(
    config: FeedbackConfig, run: RunDir, name: str, rows: list[Row], model: LocalEngine | RemoteEngine,
    judge: LocalEngine | RemoteEngine, constitution: Constitution,
) -> list[Row]:  # fmt: skip
    """Two answers to each prompt with their label, a batch at a time, into NAME.jsonl."""
    asker, asked = Asker(model, constitution.format, config.style), Asker(judge, constitution.format, config.style)
    settings = Labelling(
        config.label == "reasoning", config.clamp, config.principles, config.both_orders, config.votes, config.examples,
        config.reason_tokens, seed=config.seed,
    )  # fmt: skip
    with closing(RowFile(run.path / f"{name}.jsonl", "feedback", {"run": run.fingerprint, "rows": len(rows)})) as file:
        if not file.open(len(rows), config.batch):
            file.begin(threads=run.recall("threads"))
            with Progress(f"{run.path.name} {name}", "prompts", len(rows) - file.rows) as progress:
                while file.rows < len(rows):
                    part = _answered(asker, config, name, rows[file.rows : file.rows + config.batch], file.rows)
                    number = [i for i, row in enumerate(part) if "responses" in row]
                    labels = label_pairs(asked, constitution, [part[i] for i in number], settings, file.rows, name)
                    for i, label in zip(number, labels, strict=True):
                        part[i] |= label
                    file.append(part)
                    progress.add(len(part))
            file.finish()
    return list(read_jsonl_tolerant(run.path / f"{name}.jsonl"))


def _answered(asker: Asker, config: FeedbackConfig, name: str, rows: Sequence[Row], first: int) -> list[Row]:
    """The rows with "responses", two different ones; with "same" where both are equal, or "error"."""
    params = [
        SamplingParams(config.max_tokens, config.temperature, n=2, stop=asker.stops(),
                       seed=stream_seed(config.seed, "feedback", name, first + i) % 2**31)
        for i in range(len(rows))
    ]  # fmt: skip
    outputs = asker.answers([as_messages({"prompt": row["prompt"]}) for row in rows], params)
    out = []
    for row, output in zip(rows, outputs, strict=True):
        texts = [c.text.strip() for c in output.completions]
        if output.error:
            out.append({**row, "error": output.error})
        else:
            out.append({**row, "responses": texts} if texts[0] != texts[1] else {**row, "same": texts[0]})
    return out


def _pair(row: Row) -> Row:
    """{"prompt", "chosen", "rejected", "p_chosen"} and the row's own columns."""
    p, texts = row["p_first"], row["responses"]
    better = 0 if p >= 0.5 else 1
    pair = {"prompt": row["prompt"], "chosen": texts[better], "rejected": texts[1 - better], "p_chosen": max(p, 1 - p)}
    return {**pair, "principles": row["principles"], **({"item": row["item"]} if "item" in row else {})}


def _report(rows: Sequence[Row]) -> dict[str, Any]:
    """How sure the labels are, how far the order of the options decided, and, in the embedded world, how often they are
    right."""
    labelled = [row for row in rows if "p_first" in row]
    n = len(labelled)
    places = [row["position"] for row in labelled if "position" in row]
    out: dict[str, Any] = {
        "same": sum("same" in row for row in rows), "errors": sum("error" in row for row in rows),
        "label_confidence": sum(abs(2 * row["p_first"] - 1) for row in labelled) / n,
    }  # fmt: skip
    if places:
        out["position_bias"] = sum(places) / len(places)
    right = []
    for row in labelled:
        if "item" in row:
            one, two = (gold(item_from_row(row), text).total for text in row["responses"])
            if one != two:
                right.append((row["p_first"] > 0.5) == (one > two))
    if right:
        low, high = wilson(sum(right), len(right))
        out |= {"label_accuracy": sum(right) / len(right), "label_accuracy_low": low, "label_accuracy_high": high,
                "label_accuracy_n": len(right)}  # fmt: skip
    return out
