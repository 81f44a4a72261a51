"""Checkpoints: damage of every kind is noticed, the one before is used, and the last sound one is never deleted."""

import json

import pytest
import torch

from tutelage.core.checksums import MANIFEST, DamagedError, check, seal
from tutelage.core.errors import RunError
from tutelage.train.checkpoint import best_step, load_latest, save_checkpoint, saved_steps


def flipped(file):
    """One bit of the file is another; its length stays."""
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


DAMAGE = {
    "state.safetensors has another SHA-256": lambda folder: flipped(folder / "state.safetensors"),
    "state.safetensors has 40 bytes, ": lambda folder: (folder / "state.safetensors").write_bytes(b"x" * 40),
    "state.json is missing": lambda folder: (folder / "state.json").unlink(),
    "checksums.json is missing": lambda folder: (folder / MANIFEST).unlink(),
    "checksums.json cannot be read": lambda folder: (folder / MANIFEST).write_text("{"),
}


@pytest.mark.parametrize("says", DAMAGE)
def test_damage_is_said_in_one_line_and_the_one_before_is_used(tmp_path, capsys, says):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"a": torch.ones(40) * step})
    DAMAGE[says](tmp_path / "step-2")
    step, state = load_latest(tmp_path)
    assert step == 1 and state["a"].eq(1).all()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path}/step-2: damaged checkpoint passed over ({says}")


def test_where_all_are_damaged_nothing_begins_anew_by_itself(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"a": torch.ones(40)})
        flipped(tmp_path / f"step-{step}/state.safetensors")
    says = r"every checkpoint is damaged \(2: step 1, 2\); copy one back from a backup, or remove .* to begin anew"
    with pytest.raises(RunError, match=says):
        load_latest(tmp_path)
    assert saved_steps(tmp_path) == [1, 2] and load_latest(tmp_path / "none") is None


def test_the_newest_and_the_best_are_kept(tmp_path):
    losses = [3.0, 1.0, 2.0, 1.0, None, float("nan"), 2.5]
    for step, loss in enumerate(losses, 1):
        save_checkpoint(tmp_path, step, {"a": torch.ones(1)}, keep=2, measured=loss)
    assert saved_steps(tmp_path) == [2, 6, 7] and best_step(tmp_path, [2, 6, 7]) == 2
    save_checkpoint(tmp_path, 8, {"a": torch.ones(1)}, keep=1, measured=0.5)
    assert saved_steps(tmp_path) == [8]


def test_a_sealed_folder_knows_what_it_holds(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/x").write_text("one")
    seal(tmp_path, step=3)
    check(tmp_path)
    assert json.loads((tmp_path / MANIFEST).read_text())["files"]["in/x"]["bytes"] == 3
    (tmp_path / "in/x").write_text("two")
    with pytest.raises(DamagedError, match="in/x has another SHA-256 than when it was written"):
        check(tmp_path)
