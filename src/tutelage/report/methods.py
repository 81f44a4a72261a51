"""Methods beside one another: PPO, GRPO, RLOO, DPO and best-of-n by what they gain and how far they go for it.

All log "kl" (to the SFT model, nats an answer), "proxy" and "gold" with their steps; best-of-n logs a row for each n.
"""

from __future__ import annotations

import math
from typing import Any

from tutelage.report.plots import Panel
from tutelage.report.read import StageRun, finite, number_text, time_text

METHODS = ("ppo", "grpo", "dpo", "bestofn")
Points = list[tuple[float, float]]


def method_runs(stages: list[StageRun]) -> list[StageRun]:
    """The runs that are compared; none where there is only one."""
    runs = [s for s in stages if s.kind in METHODS]
    return runs if len(runs) > 1 else []


def points(stage: StageRun, key: str) -> Points:
    """(sqrt(KL), value) of each logged row that has both, by distance; an estimate below 0 counts as 0."""
    kl = dict(zip(*stage.series("kl")))
    found = zip(*stage.series(key))
    return sorted((math.sqrt(max(kl[step], 0.0)), value) for step, value in found if step in kl)


def method_panels(stages: list[StageRun]) -> list[Panel]:
    """Gold (and reward) of every run against sqrt(KL), the axis of Gao et al. 2022."""
    made = []
    for key, title in (("gold", "gold against distance from SFT"), ("proxy", "reward against distance from SFT")):
        lines = []
        for stage in method_runs(stages):
            if found := points(stage, key):
                lines.append((stage.name, [x for x, _ in found], [y for _, y in found]))
        if lines:
            made.append(Panel(title, "sqrt(KL)", key, lines))
    return made


def at_distance(found: Points, distance: float, window: float = 0.15) -> float | None:
    """Mean value of the points within `window` of a distance, else between its two neighbours; None outside them."""
    near = [y for x, y in found if abs(x - distance) <= window]
    if near:
        return sum(near) / len(near)
    below, above = ([p for p in found if p[0] <= distance], [p for p in found if p[0] >= distance])
    if not below or not above:
        return None
    (x0, y0), (x1, y1) = below[-1], above[0]
    return y0 if x1 == x0 else y0 + (y1 - y0) * (distance - x0) / (x1 - x0)


def method_table(stages: list[StageRun]) -> dict[str, Any]:
    """{"columns", "rows"}: of each run the KL, gold and reward at its end, the best gold on its way (mean of the points
    within 0.15 of a distance), gold at the largest distance that all of them reach, and the time."""
    runs = method_runs(stages)
    curves = [points(stage, "gold") for stage in runs]
    reached = [curve[-1][0] for curve in curves if curve]
    common = min(reached) if reached else None
    at = f"gold at KL {common**2:.2f}" if common is not None else "gold at equal KL"
    rows = []
    for stage, curve in zip(runs, curves):
        last = {key: stage.series(key)[1][-1:] for key in ("kl", "gold", "proxy")}
        end = {key: finite(stage.summary.get(key, values[0] if values else None)) for key, values in last.items()}
        best = max((v for x, _ in curve if (v := at_distance(curve, x)) is not None), default=None)
        equal = at_distance(curve, common) if common is not None else None
        seconds = stage.manifest.get("seconds", stage.summary.get("seconds"))
        numbers = [number_text(v) for v in (end["kl"], end["gold"], best, equal, end["proxy"])]
        rows.append([stage.name, stage.kind, *numbers, time_text(seconds)])
    return {"columns": ["method", "stage", "KL", "gold", "best gold", at, "reward", "time"], "rows": rows}
