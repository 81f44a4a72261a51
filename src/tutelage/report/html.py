"""report.html of a pipeline run: one file without outside addresses, made from the run directory alone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, select_autoescape

from tutelage.core.atomic import write_atomic
from tutelage.core.errors import RunError
from tutelage.report.conduct import conduct_panels
from tutelage.report.metaicl import metaicl_panels
from tutelage.report.methods import method_panels, method_table
from tutelage.report.plots import compare_panels, draw, loss_panels, ppo_panels, reward_panels
from tutelage.report.read import (
    StageRun,
    flat_metrics,
    is_stage,
    mappings,
    metrics_text,
    number_text,
    read_json,
    read_stage,
    read_stages,
    time_text,
)
from tutelage.report.reward import panels as report_panels
from tutelage.report.reward import read_report
from tutelage.report.sheets import folder_sheets
from tutelage.report.template import PAGE


def write_report(run_dir: str | Path) -> Path:
    """Write `run_dir`/report.html and return its path.

    Parts whose data are absent are left out, so an unfinished run has a report too. Raises RunError when `run_dir`
    is no directory, holds nothing to report, or cannot be written.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise RunError(f"{run_dir}: no such run directory")
    summary = read_json(run_dir / "summary.json")
    stages = read_stages(run_dir, [str(s.get("name")) for s in mappings(summary.get("stages"))])
    if is_stage(run_dir):  # a stage's own directory, not a pipeline's
        stages.insert(0, read_stage(run_dir))
    if not summary and not stages:
        raise RunError(f"{run_dir}: holds neither summary.json nor a stage's directory; nothing to report")
    # autoescape for everything: answers and prompts are a model's text and may hold markup.
    environment = Environment(autoescape=select_autoescape(default_for_string=True, default=True))
    text = environment.from_string(PAGE).render(
        title=run_dir.resolve().name,
        stages=stage_rows(summary, stages),
        figures=figures(stages),
        sheets=[(f"{s.name}: {sheet.title}", sheet) for s in stages for sheet in folder_sheets(s.path)],
        answers=answer_table(summary),
        grid=score_grid(summary),
        methods=method_table(stages),
        results=results(summary),
        details=[(s.name, number_pairs(s.summary)) for s in stages if flat_metrics(s.summary)],
        lineage=[lineage_row(s) for s in stages],
    )
    write_atomic(run_dir / "report.html", text)
    return run_dir / "report.html"


def stage_rows(summary: Mapping[str, Any], stages: list[StageRun]) -> list[dict[str, str]]:
    """Table of stages: those of summary.json, then directories which it does not name (an unfinished run)."""
    rows = [
        {
            "name": str(s.get("name", "")),
            "kind": str(s.get("kind", "")),
            "status": str(s.get("status", "")),
            "time": time_text(s.get("seconds")),
            "numbers": metrics_text(s.get("metrics")),
        }
        for s in mappings(summary.get("stages"))
    ]
    named = {row["name"] for row in rows}
    for stage in stages:
        if stage.name not in named:
            rows.append(
                {
                    "name": stage.name,
                    "kind": stage.kind,
                    "status": str(stage.manifest.get("status", "")),
                    "time": time_text(stage.summary.get("seconds")),
                    "numbers": metrics_text(stage.summary),
                }
            )
    return rows


HEADINGS = {"ppo": "PPO", "grpo": "GRPO", "dpo": "DPO"}


def figures(stages: list[StageRun]) -> list[dict[str, str]]:
    """(heading, PNG in base64) of every figure that has data."""
    made = [("Language model", draw(loss_panels(stages))), ("Reward model", draw(reward_panels(stages)))]
    for s in stages:
        made.append((f"Reward model on held-out rankings ({s.name})", draw(report_panels(read_report(s.path)))))
    made += [(f"{HEADINGS[s.kind]} ({s.name})", draw(ppo_panels(s))) for s in stages if s.kind in HEADINGS]
    made.append(("Methods compared", draw(method_panels(stages))))
    made.append(("Conduct", draw(conduct_panels(stages))))
    made.append(("In-context learning", draw(metaicl_panels(stages))))
    made.append(("PPO runs compared", draw(compare_panels(stages))))
    return [{"heading": heading, "png": png} for heading, png in made if png]


def answer_table(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Prompts answered by each model: columns base, sft, rlhf, any other model, the right answer."""
    rows = mappings(summary.get("answers"))
    seen = [key for row in rows for key in row if key != "prompt"]
    order = [
        "base",
        "sft",
        "rlhf",
        *[k for k in dict.fromkeys(seen) if k not in ("base", "sft", "rlhf", "gold_answer")],
    ]
    columns = [key for key in [*order, "gold_answer"] if key in seen]
    return {
        "columns": [NAMES.get(c, c) for c in columns],
        "rows": [[plain_text(row.get("prompt")), *[plain_text(row.get(c)) for c in columns]] for row in rows],
    }


NAMES = {"base": "base", "sft": "SFT", "rlhf": "RLHF", "gold_answer": "right answer"}


def plain_text(value: Any) -> str:
    """A prompt may be a string or a list of messages; shown as text either way."""
    if value is None:
        return ""
    if isinstance(value, list):
        return "\n".join(f"{m.get('role', '')}: {m.get('content', '')}" for m in mappings(value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


SCORE = re.compile(r"(?P<model>.+)_(?P<what>gold|correct)_(?P<how>sampled|t[0-9.]+|greedy)")
"""Results of one model under one way of answering, e.g. "sft_gold_sampled" or "rlhf_correct_t0.3"."""
HOW = {"sampled": "sampled, T=1", "greedy": "greedy"}


def score_grid(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of the results as a table: a row for each model, a column for each judgement and way of answering."""
    cells: dict[str, dict[tuple[str, str], str]] = {}
    for key, value in flat_metrics(summary.get("results")).items():
        if found := SCORE.fullmatch(key):
            cells.setdefault(found["model"], {})[found["what"], found["how"]] = number_text(value)
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    columns.sort(key=lambda column: column[0], reverse=True)  # gold before correct, otherwise as given
    return {
        "columns": [f"{what}, {HOW.get(how, how.replace('t', 'T=', 1))}" for what, how in columns],
        "rows": [[NAMES.get(model, model), *[row.get(c, "") for c in columns]] for model, row in cells.items()],
    }


def results(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Flat results as (name, text), without those that `score_grid` shows."""
    return [pair for pair in number_pairs(summary.get("results")) if not SCORE.fullmatch(pair[0])]


def number_pairs(values: Any) -> list[tuple[str, str]]:
    """(name, text) of every flat value."""
    return [(k, number_text(v)) for k, v in flat_metrics(values).items()]


def lineage_row(stage: StageRun) -> dict[str, str]:
    """What a stage was made from and with."""
    manifest = stage.manifest
    versions = manifest.get("versions")
    argv = manifest.get("argv")
    return {
        "name": stage.name,
        "parents": ", ".join(
            f"{p.get('name', '')} ({str(p.get('hash', ''))[:8]})" for p in mappings(manifest.get("parents"))
        ),
        "fingerprint": str(manifest.get("fingerprint") or "")[:8],
        "seed": number_text(manifest.get("seed")),
        "time": " to ".join(str(manifest[k]) for k in ("started", "updated") if manifest.get(k)),
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, Mapping) else "",
        "argv": " ".join(map(str, argv)) if isinstance(argv, list) else "",
    }
