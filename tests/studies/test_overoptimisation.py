"""The study at smoke scale: every cell a run of its own, found again by the same command."""

from __future__ import annotations

import json
from pathlib import Path

from tutelage.pipeline.stages import launch, read_summary
from tutelage.studies.overoptimisation import _verdict


def test_every_cell_is_a_run_and_is_not_run_again(chain: Path, tmp_path: Path) -> None:
    values = {
        "model": str(chain / "sft"), "rankings": str(chain / "rank"), "rows": [4, 8], "kl_coef": [0.0, 0.1], "seeds": 1,
        "reward_steps": 2, "updates": 7, "batch_size": 8, "max_tokens": 4, "patience": 2,
        "out": str(tmp_path / "study"),
    }  # fmt: skip
    path, _ = launch("overoptimisation", values)
    found = read_summary(path)
    assert found["runs"] == 4 and len(found["cells"]) == 4
    assert {(c["rows"], c["kl_coef"]) for c in found["cells"]} == {(4, 0.0), (4, 0.1), (8, 0.0), (8, 0.1)}
    for cell in found["cells"]:
        rows = (path / cell["run"] / "metrics.jsonl").read_text().splitlines()
        gold = [json.loads(row)["gold"] for row in rows]
        means = [sum(gold[i : i + 5]) / 5 for i in range(3)]
        assert abs(cell["gold_best"] - max(means)) < 1e-9 and abs(cell["gold_last"] - means[-1]) < 1e-9
        assert cell["stop_keeps"] <= cell["gold_best"] + 1e-9
    assert (path / "figures" / "study.png").is_file()
    assert launch("overoptimisation", values) == (path, False)


def test_the_verdict_counts_what_rose_and_fell() -> None:
    hacked = {
        "gold_start": 0.5, "gold_best": 0.8, "gold_lost": 0.3, "proxy_start": 0.0, "proxy_last": 1.0,
        "stop_keeps": 0.79,
    }  # fmt: skip
    sound = {**hacked, "gold_lost": 0.02, "stop_keeps": 0.5}
    found = _verdict([hacked, sound])
    assert found == {"runs": 2, "rose_then_fell": 1, "stopped_within_5_percent": 1}
