"""A disk that is full, really (a file system of a few hundred kilobytes): what was saved before stays and is named."""

import os
import subprocess

import pytest
import torch

from tutelage.core.errors import RunError
from tutelage.core.rundir import RunDir, read_manifest
from tutelage.model.hub import create_model, save_model
from tutelage.pipeline.stages import launch
from tutelage.text.tokenizer import train_tokenizer
from tutelage.train.checkpoint import load_latest, save_checkpoint, saved_steps


@pytest.fixture
def disk(tmp_path):
    """disk(kilobytes) mounts a file system of that size; only root may, so elsewhere the test skips."""
    mounted = []

    def mount(kilobytes):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        line = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        try:
            done = subprocess.run(line, capture_output=True, text=True)
        except OSError as error:
            pytest.skip(f"no mount here: {error}")
        if done.returncode:
            pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def remount(folder, option):
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)


def left(folder):
    """Half-written things that lie about."""
    return [p.name for p in folder.rglob(".*") if p.name != ".lock"]


def test_metrics_stop_with_the_file_named_and_stay_readable(disk):
    run = RunDir(disk(128) / "r", "demo", {})
    run.open()
    with pytest.raises(RunError, match="metrics.jsonl: cannot write .No space left on device.; make room there"):
        for step in range(10_000):
            run.log({"step": step, "loss": 1 / (step + 1)})
    run.fail(RunError("full"))
    run.close()
    (run.path / "events").rename(run.path / "x")  # room again
    for file in (run.path / "x").iterdir():
        file.unlink()
    assert run.open() == "resume"
    run.truncate_metrics(100)
    assert len((run.path / "metrics.jsonl").read_text().splitlines()) == 101
    run.close()


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(disk):
    folder = disk(600)
    save_checkpoint(folder, 1, {"a": torch.ones(40_000)})
    save_checkpoint(folder, 2, {"a": torch.ones(40_000) * 2})
    with pytest.raises(RunError, match=r"step-3: cannot write \(.*os error 28.*make room .*\(step 2 is saved\)"):
        save_checkpoint(folder, 3, {"a": torch.ones(140_000)})
    assert saved_steps(folder) == [1, 2] and not left(folder)
    step, state = load_latest(folder)
    assert step == 2 and state["a"].eq(2).all()


def test_a_disk_that_became_read_only_is_said_and_what_was_saved_stays(disk, chain):
    folder = disk(30_000)
    given = {"model": str(chain / "pretrain"), "rows": 40, "held_rows": 8, "steps": 3, "save_every": 1}
    run = RunDir(folder / "r", "demo", {})
    run.open()
    run.log({"step": 1, "loss": 1.0})
    save_checkpoint(run.path / "checkpoints", 1, {"a": torch.ones(4)})
    run.close()  # a file system with a file open for writing cannot be made read-only
    remount(folder, "ro")
    with pytest.raises(RunError, match=r"step-2: cannot write .Read-only file system.; make room .*.step 1 is saved"):
        save_checkpoint(run.path / "checkpoints", 2, {"a": torch.ones(4)})
    with pytest.raises(RunError, match="samples.jsonl: cannot write .Read-only file system"):
        run.sample([{"step": 2}])
    run.fail(RunError("read-only"))
    with pytest.raises(RunError, match="other: cannot be used as a run directory .Read-only file system"):
        launch("sft", {**given, "out": str(folder / "other")})
    remount(folder, "rw")
    assert run.open() == "resume" and load_latest(run.path / "checkpoints")[0] == 1
    run.close()


def test_a_model_that_does_not_fit_leaves_the_older_one(disk):
    tokenizer = train_tokenizer(["a word"] * 5, 300)
    model = create_model("laptop-0.3m", tokenizer, 64)
    folder = disk(1500)
    save_model(model, tokenizer, folder / "m")
    before = {p.name: p.read_bytes() for p in (folder / "m").iterdir()}
    with pytest.raises(RunError, match="m: cannot write .*make room there or choose another out="):
        save_model(model, tokenizer, folder / "m")
    assert {p.name: p.read_bytes() for p in (folder / "m").iterdir()} == before and os.listdir(folder) == ["m"]


@pytest.mark.parametrize("kind", ["tokenizer", "prepare", "sft"])
def test_a_stage_on_a_full_disk_says_so_and_goes_on_when_there_is_room(chain, disk, kind, tmp_path):
    folder = disk({"tokenizer": 24, "prepare": 32, "sft": 6000}[kind])
    given = {
        "tokenizer": {"documents": 200, "vocab_size": 400},
        "prepare": {"tokenizer": str(chain / "tokenizer"), "documents": 3000},
        "sft": {"model": str(chain / "pretrain"), "rows": 40, "held_rows": 8, "steps": 3, "save_every": 1},
    }[kind] | {"out": str(folder / "run")}
    with pytest.raises(RunError, match=r"cannot write .*make room there"):
        launch(kind, given)
    assert not left(folder)
    manifest = read_manifest(folder / "run")  # None where not even that could be written
    assert manifest is None or manifest["status"] in ("failed", "running")
    remount(folder, "size=40m")
    out, ran = launch(kind, given)
    assert ran and read_manifest(out)["status"] == "finished"
    if kind == "sft":
        whole, _ = launch(kind, {**given, "out": str(tmp_path / "whole")})
        assert (out / "model/model.safetensors").read_bytes() == (whole / "model/model.safetensors").read_bytes()
