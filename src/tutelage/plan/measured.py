"""Model FLOPs utilisation that a run of this project reached, from its own log."""

from __future__ import annotations

import statistics
from pathlib import Path

from transformers import AutoConfig

from tutelage.core.config import read_toml
from tutelage.core.errors import ConfigError
from tutelage.core.rundir import read_jsonl_tolerant, read_manifest
from tutelage.plan.cost import mfu_of, training_flops
from tutelage.plan.estimate import shape_of
from tutelage.plan.hardware import Hardware


def measured_mfu(run: str | Path, hardware: Hardware) -> float:
    """The share of one device's peak that a finished run of `pretrain` reached: the median tokens a second of its
    steps after the first, times the FLOPs of a token (PaLM, app. B), over the peak of `hardware`.

    ConfigError for another kind of directory, a run on another kind of device, or a share above 1.
    """
    run = Path(run)
    manifest = read_manifest(run) or {}
    if manifest.get("kind") != "pretrain" or not (run / "model" / "config.json").is_file():
        raise ConfigError(f"mfu={run}: expected a share such as 0.4, or the directory of a finished run of pretrain")
    device = str(manifest.get("device", "cpu")).partition(":")[0]
    if (device == "cpu") != hardware.is_cpu:
        raise ConfigError(f"mfu={run}: that run was on {device}, gpus= names {hardware.name}; give a run of that kind")
    speeds = [row["tokens_per_second"] for row in read_jsonl_tolerant(run / "metrics.jsonl") if "loss" in row][1:]
    if not speeds:
        raise ConfigError(f"mfu={run}: fewer than 2 logged steps, so no speed; give a longer run")
    shape = shape_of(AutoConfig.from_pretrained(run / "model"))
    length = read_toml(run / "config.toml")["block_size"]
    each = training_flops(shape.matmul, shape.layers, shape.attention_width, length)
    found = mfu_of(statistics.median(speeds), each, 1, hardware.peak)
    if not 0 < found <= 1:
        raise ConfigError(f"mfu={run}: a share of {found:.2f} of {hardware.name}'s peak; that run had another device")
    return found
