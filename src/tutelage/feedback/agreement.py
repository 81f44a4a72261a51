"""How far the people in a store agree: core.agreement on their current rankings, and the report in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from statistics import median
from typing import Any

from sqlalchemy import Connection, select

from tutelage.core.agreement import Ranked, agreement_report
from tutelage.feedback import items as items_
from tutelage.feedback import judging
from tutelage.feedback.tables import items, judgements, people

_MEASURES = (
    ("agreement", "agreement on pairs that both order (chance: 0.5)"),
    ("agreement_exact", "the same, ties counting as a judgement"),
    ("agreement_majority", "one person with the majority of the others"),
    ("kendall_tau", "Kendall's tau-b"),
    ("alpha_pairs", "Krippendorff's alpha of pairs"),
    ("alpha_ranks", "Krippendorff's alpha of ranks"),
)


def report(c: Connection, batch: str | None) -> dict[str, Any]:
    """agreement_report over a batch (None: all of them), with what each person did under "people"."""
    chosen = (
        select(judgements, people.c.name)
        .join(people, people.c.id == judgements.c.person_id)
        .join(items, items.c.id == judgements.c.item_id)
        .where(judging.is_current())
        .order_by(judgements.c.id)
    )
    if batch is not None:
        chosen = chosen.where(items.c.batch_id == items_.need_batch(c, batch).id)
    rows = c.execute(chosen).all()
    groups = judging.groups_of(c, [row.id for row in rows])
    rankings = [Ranked(row.item_id, row.name, groups[row.id], row.created_at) for row in rows if row.id in groups]
    return {**agreement_report(rankings), "people": _people(rows)}


def _people(rows: Iterable[Any]) -> list[dict[str, Any]]:
    """What each person did, those who did most first."""
    by_name: dict[str, list[Any]] = {}
    for row in rows:
        by_name.setdefault(row.name, []).append(row)
    found = []
    for name, own in by_name.items():
        kinds = Counter(row.kind for row in own)
        seconds = [row.seconds for row in own if row.seconds > 0]
        found.append({
            "name": name,
            "judged": len(own) - kinds["skip"],
            "skipped": kinds["skip"],
            "all_bad": kinds["all_bad"],
            "flags": sum(len(row.flags) for row in own),
            "seconds": median(seconds) if seconds else None,
        })  # fmt: skip
    return sorted(found, key=lambda line: -line["judged"])


def in_words(found: Mapping[str, Any]) -> str:
    """The report as lines for a terminal."""
    lines = [
        f"{found['rankings']} rankings of {found['items']} items by {found['annotators']} people, "
        f"{found['overlap_items']} items ranked by several"
    ]
    if found["overlap_items"]:
        lines += [f"  {_number(found, key):24} {words}" for key, words in _MEASURES]
    else:
        lines.append("no item was ranked by two people, so nothing can be said about agreement (overlap= of the batch)")
    if found["people"]:
        lines += ["", *_table(_person_lines(found))]
    if times := [line for line in found["over_time"] if line["agreement"] is not None]:
        spans = [
            (_when(t["start"]), _when(t["end"]), str(t["rankings"]), _number(t, "agreement"), _number(t, "kendall_tau"))
            for t in times
        ]
        lines += ["", *_table([("from", "to", "rankings", "agreement", "tau"), *spans])]
    return "\n".join(lines)


def _person_lines(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    agreed = {line["annotator"]: line for line in found["per_annotator"]}
    out: list[tuple[str, ...]] = [("person", "judged", "skipped", "all bad", "flags", "seconds", "agreement", "tau")]
    for line in found["people"]:
        own = agreed.get(line["name"], {})
        seconds = "-" if line["seconds"] is None else f"{line['seconds']:.0f}"
        counts = (str(line[key]) for key in ("judged", "skipped", "all_bad", "flags"))
        out.append((line["name"], *counts, seconds, _number(own, "agreement"), _number(own, "kendall_tau")))
    return out


def _number(values: Mapping[str, Any], key: str) -> str:
    """A value with its interval; "-" where there is none."""
    value, low, high = (values.get(name) for name in (key, f"{key}_low", f"{key}_high"))
    if value is None:
        return "-"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths)).rstrip() for row in rows]
