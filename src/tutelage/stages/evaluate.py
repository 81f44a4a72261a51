"""Measure a trained reward model on rankings: the report that `reward` writes, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tutelage.core.config import StageConfig, read_toml
from tutelage.core.errors import ConfigError
from tutelage.core.lineage import parent_entry, read_manifest
from tutelage.core.rundir import RunDir
from tutelage.model.heads import RewardModel
from tutelage.model.hub import load_model, load_tokenizer
from tutelage.report.read import read_json
from tutelage.report.reward import save_report
from tutelage.text.rankings import join_annotators
from tutelage.train.reward_data import encode_rankings, score_rankings
from tutelage.train.reward_details import full_report
from tutelage.train.reward_report import prefers_longer, truth_of
from tutelage.train.sources import rankings, read_rankings

MAX_LENGTH = 256
"""Tokens, where nothing says how the model was trained."""


class EvaluateConfig(StageConfig):
    model: str
    """The reward model: a run directory of `reward`, or a folder of a sequence-classification model with one label."""
    data: str
    """Preferences: a file or folder of pairs or rankings, or the run directory of `rank`."""
    part: Literal["auto", "all", "heldout"] = "auto"
    """heldout: the part of the data that `reward` would hold out; auto: that, where the model was trained on this very
    data or the data is a run of `rank`, else all."""
    rows: int = Field(1000, ge=1)
    """At most this many prompts, spread evenly over them all."""
    sft: str | None = None
    """The frozen SFT model whose log-probs the model reads beside the text, if it does; the run directory knows it."""
    max_length: int | None = Field(None, ge=8)
    """Tokens of prompt and response; as in training, where the run directory tells, else 256."""


def run(config: EvaluateConfig, run: RunDir) -> dict[str, Any]:
    """Score the rankings and write reward_report.json."""
    trained = _training(config.model)
    people, part = _chosen(config, trained, run)
    rows = join_annotators(people)
    rows = rows[:: -(-len(rows) // config.rows)]
    model, tokenizer = RewardModel.load(config.model).eval(), load_tokenizer(config.model)
    sft = None
    if model.features is not None:
        source = config.sft or trained.get("model")
        if not source:
            raise ConfigError(f"{config.model} reads log-probs of its SFT model; name that as sft=")
        sft = load_model(source, tokenizer)[0].eval()
    encoded = encode_rankings(rows, tokenizer, config.max_length or trained.get("max_length", MAX_LENGTH), sft)
    rule = read_json(Path(config.model) / "summary.json").get("length_rule")
    longer = prefers_longer(rows) if rule is None else rule == "longer"
    scores = score_rankings(model, encoded, tokenizer.pad_token_id)
    report = full_report(rows, scores, [truth_of(row) for row in rows], longer, people)
    save_report(run.path, report)
    return {
        **report["summary"],
        "part": part,
        "prompts": len(rows),
        "length_rule": "longer" if longer else "shorter",
        **{key: sum(row[key] for row in encoded) for key in ("prompts_cut", "responses_cut")},
    }


def _training(model: str) -> dict[str, Any]:
    """The configuration that the reward model's run was trained with; {} for a plain folder."""
    file = Path(model) / "config.toml"
    return read_toml(file) if file.is_file() else {}


def _chosen(config: EvaluateConfig, trained: dict[str, Any], run: RunDir) -> tuple[list[dict[str, Any]], str]:
    """(the rows of the part to measure, each annotator's apart; the part's name)."""
    part = config.part
    if part == "auto":
        part = "heldout" if _trained_on(config, trained) or _is_rank(config.data) else "all"
        if part == "heldout" and trained.get("held_out") and not _is_rank(config.data):
            raise ConfigError(
                f"data={config.data}: the model was trained on all of it; data={trained['held_out']} was held out, "
                "part=all measures the training rows"
            )
    if part == "heldout":
        return rankings(config.data, None, run.bad_rows, joined=False)[1], part
    return read_rankings(config.data, run.bad_rows, joined=False), part


def _is_rank(data: str) -> bool:
    return (read_manifest(data) or {}).get("kind") == "rank" if Path(data).is_dir() else False


def _trained_on(config: EvaluateConfig, trained: dict[str, Any]) -> bool:
    """Whether the model's run names data of the same contents as what it was trained on."""
    given = str(trained.get("data"))
    parents = (read_manifest(config.model) or {}).get("parents", []) if Path(config.model).is_dir() else []
    known = {p["hash"] for p in parents if Path(p["path"]) == Path(given)}
    return Path(config.data).exists() and parent_entry(config.data)["hash"] in known
