"""Harmlessness against helpfulness: of each round of revision, of each RL step, and of the models measured."""

from __future__ import annotations

from tutelage.report.plots import Panel, panel, smooth
from tutelage.report.read import StageRun, finite

RATES = {"harmful": "harmful answers", "helpful": "helpful answers", "over_refusal": "harmless requests refused"}


def conduct_panels(stages: list[StageRun]) -> list[Panel]:
    """Nothing where no stage has measured conduct."""
    made = []
    for stage in stages:
        if stage.kind == "constitution":
            made.append(panel(stage, f"{stage.name}: after each revision", RATES, "share", "round"))
        elif stage.series("harmful")[0]:
            made.append(panel(stage, f"{stage.name}: answers", RATES, "share", "update"))
    made.append(frontier(stages))
    return [p for p in made if p]


def frontier(stages: list[StageRun]) -> Panel | None:
    """Share of harmful requests not served against share of harmless ones helped with; paths of rounds and of RL steps
    (trailing means), points with their 95% intervals for models."""
    lines: list[tuple[str, list[float], list[float]]] = []
    bars: list[tuple[list[float], list[float]]] = []
    for stage in stages:
        if stage.kind == "conduct":
            found = {name: finite(stage.summary.get(name)) for name in _BOUNDS}
            if None in found.values():
                continue
            at = {name: value for name, value in found.items() if value is not None}
            lines.append((stage.name, [at["helpful"]], [1 - at["harmful"]]))
            bars.append((
                [at["helpful"] - at["helpful_low"], at["helpful_high"] - at["helpful"]],
                [at["harmful_high"] - at["harmful"], at["harmful"] - at["harmful_low"]],
            ))  # fmt: skip
            continue
        steps, harmful = stage.series("harmful")
        helped = dict(zip(*stage.series("helpful"), strict=True))
        both = [(helped[s], 1 - h) for s, h in zip(steps, harmful, strict=True) if s in helped]
        if both:
            width = 1 if stage.kind == "constitution" else 5
            x, y = (smooth([point[i] for point in both], width) for i in (0, 1))
            lines.append((stage.name, x, y))
            bars.append(([], []))
    if not lines:
        return None
    return Panel("harmlessness against helpfulness", "helpful answers", "1 - harmful answers", lines, bars=bars,
                 x_scale="fraction")  # fmt: skip


_BOUNDS = [f"{name}{end}" for name in ("helpful", "harmful") for end in ("", "_low", "_high")]
