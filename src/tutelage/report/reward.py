"""The reward model's report as tables and curves, from its reward_report.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tutelage.core.atomic import write_atomic
from tutelage.report.plots import Panel, save_figure
from tutelage.report.read import Sheet, mappings, number_text, read_json

FILE = "reward_report.json"
Report = Mapping[str, Any]


def save_report(folder: Path, report: Report) -> None:
    """Write reward_report.json and figures/reward.png into a run directory."""
    write_atomic(folder / FILE, json.dumps(report, indent=1, ensure_ascii=False))
    save_figure(folder, "reward", panels(report))


def read_report(folder: Path) -> Report:
    """The report of a run directory, {} where there is none."""
    return read_json(folder / FILE)


def sheets(report: Report) -> list[Sheet]:
    """The numbers and, where people are named, how each of them goes with the others and with the model."""
    if not report:
        return []
    numbers = [row for row in [*_accuracy(report), *_people(report), *_others(report)] if row[1]]
    out = [Sheet("reward model", ["", "value", "95%", "counted"], numbers)]
    people = _mapping(report.get("people"))
    lines = [
        [
            str(line.get("annotator")), number_text(line.get("rankings")), _value(line, "agreement"),
            _bounds(line, "agreement"), _value(line, "kendall_tau"), _value(line, "model_agreement"),
            _bounds(line, "model_agreement"),
        ]
        for line in mappings(people.get("per_annotator"))
    ]  # fmt: skip
    if lines:
        columns = ["annotator", "rankings", "others", "95%", "tau", "model", "95%"]
        out.append(Sheet("each person's agreement with the others, and with the model", columns, lines))
    return out


def curve_sheet(summary: Mapping[str, Any]) -> Sheet | None:
    """The table of the study of learning curves: a row a reward model, then the people's own agreement."""
    key = summary.get("measure")
    if key not in ("model_agreement", "accuracy"):
        return None
    rows = [
        [str(cell.get("model")), *(number_text(cell.get(name)) for name in ("prompts", "comparisons", "seed")),
         _value(cell, key), _bounds(cell, key), _value(cell, "gold_accuracy")]
        for cell in mappings(summary.get("cells"))
    ]  # fmt: skip
    for name, words in (("people_agreement", "one person with another"), ("truth_agreement", "true scores")):
        if name in summary:
            rows.append([words, "", "", "", _value(summary, name), _bounds(summary, name), ""])
    label = "person" if key == "model_agreement" else "label"
    title = "reward models: agreement with one {}, and with the true scores where they are known"
    return Sheet(title.format(label), ["model", "prompts", "pairs", "seed", label, "95%", "truth"], rows)


def panels(report: Report) -> list[Panel]:
    """Reliability of P(preferred), accuracy by margin, accuracy by how much longer the preferred response is."""
    made = []
    curve = mappings(report.get("reliability"))
    if curve:
        x, y = [row["confidence"] for row in curve], [row["frequency"] for row in curve]
        band = [row["frequency"] if row["low"] is None else row["low"] for row in curve], [
            row["frequency"] if row["high"] is None else row["high"] for row in curve
        ]
        ideal = [min(*x, 0.5), 1.0]
        lines = [("held-out", x, y), ("calibrated", ideal, ideal)]
        made.append(Panel("reliability", "P(preferred) by the model", "share preferred", lines, [band, (ideal, ideal)],
                          "fraction"))  # fmt: skip
        margins = [row["margin"] for row in curve]
        lines = [("held-out", margins, y), ("by the model", margins, x)]
        made.append(Panel("accuracy by margin", "difference of scores", "share", lines, [band, (x, x)], "fraction"))
    lengths = mappings(_mapping(report.get("length")).get("curve"))
    if len(lengths) > 1:
        x, y = [row["longer_by"] for row in lengths], [row["value"] for row in lengths]
        band = [row["value"] if row["low"] is None else row["low"] for row in lengths], [
            row["value"] if row["high"] is None else row["high"] for row in lengths
        ]
        made.append(Panel("accuracy by length", "preferred response longer by (characters)", "accuracy",
                          [("held-out", x, y)], [band], "fraction"))  # fmt: skip
    return made


def _accuracy(report: Report) -> list[list[str]]:
    found, length = _mapping(report.get("summary")), _mapping(report.get("length"))
    rows = [
        _row("accuracy, over pairs", found, "accuracy", found.get("pairs")),
        _row("accuracy, mean over prompts", found, "accuracy_by_prompt", report.get("prompts")),
    ]
    names = {
        "longer_preferred": "accuracy, longer response preferred",
        "shorter_preferred": "accuracy, shorter response preferred",
        "balanced": "accuracy, both counted equally",
        "length_removed": "accuracy, length taken out of the score",
    }
    for key, name in names.items():
        line = _mapping(length.get(key))
        rows.append([name, number_text(line.get("value")), _between(line.get("low"), line.get("high")),
                     number_text(line.get("pairs"))])  # fmt: skip
    rows.append(_row("accuracy of the rule by length alone", found, "length_only_accuracy"))
    return rows


def _people(report: Report) -> list[list[str]]:
    people = _mapping(report.get("people"))
    between = _mapping(people.get("between"))
    model = _mapping(people.get("model_overlap") or people.get("model"))
    truth = _mapping(people.get("truth_overlap"))
    return [
        _row("agreement: model with one person", model, "agreement", model.get("comparisons")),
        _row("agreement: one person with another", between, "agreement", between.get("comparisons")),
        _row("agreement: true scores with one person", truth, "agreement", truth.get("comparisons")),
        _row("agreement: model with the majority", model, "agreement_majority"),
        _row("agreement: one person with the others' majority", between, "agreement_majority"),
        _row("Kendall's tau: model with one person", model, "kendall_tau"),
        _row("Kendall's tau: one person with another", between, "kendall_tau"),
        _row("Krippendorff's alpha, pairs", between, "alpha_pairs"),
        _row("Krippendorff's alpha, ranks", between, "alpha_ranks"),
    ]


def _others(report: Report) -> list[list[str]]:
    found, length = _mapping(report.get("summary")), _mapping(report.get("length"))
    names = {
        "kendall_tau": "Kendall's tau with the labels, mean over prompts",
        "gold_accuracy": "accuracy against the true scores",
        "accuracy_ceiling": "accuracy of the true scores on these labels",
        "right_over_wrong": "right answer above wrong one",
        "calibration_error": "calibration error (ECE), equal widths",
    }
    return [
        *(_row(name, found, key, found.get(f"{key}_pairs")) for key, name in names.items()),
        _row("calibration error (ECE), equal counts", report, "calibration_error_equal_bins"),
        _row("correlation of score and length", length, "correlation"),
        _row("the same within prompts", length, "correlation_within"),
    ]


def _row(name: str, values: Mapping[str, Any], key: str, counted: Any = None) -> list[str]:
    return [name, _value(values, key), _bounds(values, key), number_text(counted)]


def _value(values: Mapping[str, Any], key: str) -> str:
    return number_text(values.get(key))


def _bounds(values: Mapping[str, Any], key: str) -> str:
    return _between(values.get(f"{key}_low"), values.get(f"{key}_high"))


def _between(low: Any, high: Any) -> str:
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
