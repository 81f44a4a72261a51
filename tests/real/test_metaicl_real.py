"""The stage on real tasks with the real stories260K: topics and questions are trained on, reviews are measured."""

import pytest

from tutelage.pipeline.stages import launch, read_summary

pytestmark = pytest.mark.real


@pytest.mark.parametrize("more", [{"channel": True}, {"objective": "selfsupervised", "format": "minimal"}])
def test_real_tasks_and_real_text(real_data, tmp_path, more):
    values = {"model": str(real_data / "weights/stories260K/hf"), "tasks": ["subj", "trec"], "targets": ["sst2", "rte"],
              "data": str(real_data), "text": str(real_data / "text/tinystories_tiny"), "shots": 2, "measured": [0],
              "limit": 16, "steps": 3, "batch_size": 4, "eval_every": 0, "precision": "fp32"}  # fmt: skip
    summary = read_summary(launch("metaicl", {**values, **more, "out": str(tmp_path / "m")})[0])
    assert [row["task"] for row in summary["tasks"]] == ["sst2", "rte"] and summary["groups"][0]["tasks"] == 2
    assert all(0 <= row["after_low"] < row["after_high"] <= 1 for row in summary["tasks"])
