"""Curves as PNG in base64, drawn without a display. What was not logged gives no panel; no panels, no figure."""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tutelage.core.atomic import write_folder
from tutelage.core.overoptimisation import Fit
from tutelage.report.read import StageRun, finite

WIDTH, HEIGHT = 4.6, 3.0  # inches a panel
MONITORS = {
    "repetition": "repetition", "refusal_rate": "refuses", "sycophancy_rate": "flatters", "distinct": "different",
}  # fmt: skip


@dataclass
class Panel:
    """One set of axes: `lines` are (label, x, y); `bands`, if any, are the (low, high) around each line."""

    title: str
    x_label: str
    y_label: str
    lines: list[tuple[str, list[float], list[float]]]
    bands: list[tuple[list[float], list[float]]] = field(default_factory=list)
    x_scale: Literal["linear", "fraction", "doubling"] = "linear"
    """linear: marked at whole numbers; fraction: anywhere; doubling: 0, 1, 2, 4, 8, ... at equal distances."""


def panel(stage: StageRun, title: str, keys: dict[str, str], y_label: str, x_label: str = "step") -> Panel | None:
    """A panel of the metrics `keys` (metric: label) against the step; None where none of them was logged."""
    lines = [(label, *stage.series(key)) for key, label in keys.items()]
    lines = [line for line in lines if line[1]]
    return Panel(title, x_label, y_label, lines) if lines else None


def loss_panels(stages: list[StageRun]) -> list[Panel]:
    """Training and held-out loss of the stages that train a language model, and what the probe saw of pretraining."""
    made = []
    for stage in stages:
        if stage.kind in ("pretrain", "sft"):
            keys = {"loss": "training", "val_loss": "held-out"}
            made.append(panel(stage, f"{stage.name}: loss", keys, "nats a token"))
            made.append(panel(stage, f"{stage.name}: question probe", {"probe": "right"}, "share right"))
    return [p for p in made if p]


def reward_panels(stages: list[StageRun]) -> list[Panel]:
    """Loss, and how often the reward model prefers the answer that was ranked higher; held-out from the summary."""
    made = []
    for stage in stages:
        if stage.kind != "reward":
            continue
        made.append(panel(stage, f"{stage.name}: loss", {"loss": "training"}, "nats a pair"))
        keys = {"accuracy": "training", "val_accuracy": "held-out"}
        accuracy = panel(stage, f"{stage.name}: accuracy on pairs", keys, "accuracy")
        held = finite(stage.summary.get("accuracy"))
        if accuracy and held is not None and not stage.series("val_accuracy")[0]:
            x = accuracy.lines[0][1]
            accuracy.lines.append(("held-out, at the end", [x[0], x[-1]], [held, held]))
        made.append(accuracy)
    for stage in stages:
        if stage.kind == "dpo":
            keys = {"loss": "training", "val_loss": "held-out"}
            made.append(panel(stage, f"{stage.name}: loss", keys, "a pair or an answer"))
            keys = {"accuracy": "training", "val_accuracy": "held-out"}
            made.append(panel(stage, f"{stage.name}: accuracy", keys, "accuracy"))
            keys = {"reward_best": "better answer", "reward_worst": "worse answer"}
            made.append(panel(stage, f"{stage.name}: beta * log ratio", keys, "nats times beta"))
    return [p for p in made if p]


def compare_panels(stages: list[StageRun]) -> list[Panel]:
    """Several PPO runs on the same axes (with and without ptx, other rewards); nothing for a single one."""
    runs = [s for s in stages if s.kind == "ppo"]
    if len(runs) < 2:
        return []
    made = []
    for key, title in (("gold", "gold"), ("kl", "KL to the SFT model"), ("ptx_loss", "pretraining loss in the mix")):
        lines = [(s.name, *s.series(key)) for s in runs]
        made.append(Panel(title, "update", key, [line for line in lines if line[1]]))
    return [p for p in made if p.lines]


def ppo_panels(stage: StageRun) -> list[Panel]:
    """What a PPO run did, update by update, and the gold score against the distance travelled."""
    x = "update"
    made = [
        panel(stage, "reward model (proxy) and gold judge", {"proxy": "proxy", "gold": "gold"}, "score", x),
        panel(stage, "KL to the SFT model", {"kl": "KL"}, "nats an answer", x),
        gold_against_kl(stage),
        panel(stage, "entropy", {"entropy": "entropy"}, "nats a token", x),
        panel(stage, "clipping", {"clip_fraction": "clip fraction", "approx_kl": "approx. KL of the step"}, "", x),
        panel(stage, "groups without a difference", {"flat_groups": "share"}, "share", x),
        panel(stage, "disagreement of the reward models", _named(stage, "disagreement/"), "standard deviation", x),
        panel(stage, "critic: explained variance", {"explained_variance": "explained variance"}, "", x),
        panel(stage, "answers that end (EOS rate)", {"eos_rate": "EOS rate"}, "share", x),
        panel(stage, "answer length", {"length": "tokens"}, "tokens", x),
        panel(stage, "habits", MONITORS, "share of answers", x),
        panel(stage, "held-out reward models", {"held_out": "mean - disagreement"}, "score", x),
        panel(stage, "length-reward correlation", {"length_reward_correlation": "correlation"}, "", x),
        panel(stage, "pretraining loss in the mix (ptx)", {"ptx_loss": "loss"}, "nats a token", x),
        panel(stage, "KL coefficient", {"beta": "beta"}, "", x),
    ]
    return [p for p in made if p]


def _named(stage: StageRun, prefix: str) -> dict[str, str]:
    """The logged metrics of that beginning, each with what follows it."""
    found = {key for row in stage.rows for key in row if key.startswith(prefix)}
    return {key: key.removeprefix(prefix) for key in sorted(found)}


def gold_against_kl(stage: StageRun) -> Panel | None:
    """Proxy and gold against sqrt(KL), the axis of Gao et al. 2022: where gold bends down, the proxy is hacked."""
    steps, kl = stage.series("kl")
    # An estimate of a KL may fall a little below 0; there the distance is 0.
    distance = {s: math.sqrt(max(k, 0.0)) for s, k in zip(steps, kl, strict=True)}
    lines = []
    for key in ("proxy", "gold"):
        at, values = stage.series(key)
        points = sorted((distance[s], v) for s, v in zip(at, values, strict=True) if s in distance)
        if points:
            lines.append((key, [p[0] for p in points], [p[1] for p in points]))
            lines += _law(key, stage.summary.get(f"{key}_fit"), points[-1][0])
    return Panel("score against distance from SFT", "sqrt(KL)", "score", lines) if lines else None


def _law(key: str, found: Any, furthest: float) -> list[tuple[str, list[float], list[float]]]:
    """The fitted law of Gao et al. as one more set of points, dense enough to read as a curve; none without a fit."""
    try:
        made = Fit(**{k: v for k, v in found.items() if k != "turn"})
    except (TypeError, AttributeError):
        return []
    x = [furthest * i / 60 for i in range(61)]
    return [(f"{key}: d(a - b log d), R2 {made.r2:.2f}", x, [made.start + made.gain(d) for d in x])]


def smooth(values: list[float], width: int) -> list[float]:
    """Trailing mean over `width` values."""
    return [sum(values[max(0, i - width + 1) : i + 1]) / (i + 1 - max(0, i - width + 1)) for i in range(len(values))]


def draw(panels: list[Panel], columns: int = 3) -> str:
    """All panels in one PNG, as base64 text; "" for no panels."""
    if not panels:
        return ""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot: it keeps state and may look for a display
    from matplotlib.ticker import MaxNLocator

    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for i, item in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        fill(axes, item)
        if item.x_label != "sqrt(KL)" and item.x_scale == "linear":
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a stage's name may be Chinese; matplotlib's font is not
        figure.savefig(buffer, format="png", dpi=90, metadata={"Software": None})
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def save_figure(folder: Path, name: str, panels: Sequence[Panel], columns: int = 3) -> Path | None:
    """Write the panels as figures/NAME.png in a run directory, whole or not at all; None for no panels."""
    if not panels:
        return None
    png = base64.b64decode(draw(list(panels), columns))
    file = f"{name}.png"
    return write_folder(folder / "figures", lambda aside: (aside / file).write_bytes(png)) / file


def fill(axes: Any, item: Panel) -> None:
    """Draw one panel; a long curve is drawn faintly with its trailing mean over it."""
    scatter = item.x_label == "sqrt(KL)"
    for number, (label, x, y) in enumerate(item.lines):
        style = "." if scatter or len(x) == 1 else "-"
        if len(x) > 60 and not scatter:
            line = axes.plot(x, y, style, alpha=0.3)[0]
            axes.plot(x, smooth(y, max(5, len(y) // 30)), color=line.get_color(), label=plain(label))
        else:
            line = axes.plot(x, y, style, alpha=0.9, label=plain(label))[0]
        if item.bands:
            axes.fill_between(x, *item.bands[number], color=line.get_color(), alpha=0.15, linewidth=0)
    if item.x_scale == "doubling":
        axes.set_xscale("symlog", base=2, linthresh=1)
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set(title=plain(item.title), xlabel=item.x_label, ylabel=item.y_label)
    axes.title.set_fontsize(10)
    axes.grid(alpha=0.25)
    if len(item.lines) > 1:
        axes.legend(fontsize=8, frameon=False)


def plain(text: str) -> str:
    """Text as matplotlib shall show it: "$" would start mathematics."""
    return text.replace("$", r"\$")
