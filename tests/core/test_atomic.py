"""Whole or not at all: kills between the renames, leftovers of the dead, the living and the user's own, full disks."""

import errno
import json
import os
import subprocess
import sys

import pytest

from tutelage.core import atomic
from tutelage.core.atomic import sweep, write_atomic, write_folder
from tutelage.core.errors import DataError, RunError
from tutelage.core.rundir import RunDir
from tutelage.core.stop import StopFlag, stops_at_once, undisturbed

DEAD = 999_999_999  # above every pid_max


def fill(text):
    return lambda folder: (folder / "a.txt").write_text(text)


def test_a_folder_is_replaced_whole(tmp_path):
    write_folder(tmp_path / "m", fill("one"))
    write_folder(tmp_path / "m", fill("two"))
    assert (tmp_path / "m/a.txt").read_text() == "two" and os.listdir(tmp_path) == ["m"]

    def fails(folder):
        fill("half")(folder)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        write_folder(tmp_path / "m", fails)
    assert (tmp_path / "m/a.txt").read_text() == "two" and os.listdir(tmp_path) == ["m"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    """The older folder is moved away, the new one not yet in place: the next writer puts the older one back first."""
    write_folder(tmp_path / "m", fill("old"))
    (tmp_path / "m").rename(tmp_path / f".m.{DEAD}.old")
    (tmp_path / f".m.{DEAD}.part").mkdir()

    def fails(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RunError, match="m: cannot write .No space left on device.; make room there or choose"):
        write_folder(tmp_path / "m", fails)
    assert (tmp_path / "m/a.txt").read_text() == "old" and os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize("call", range(1, 6))
def test_death_at_every_rename_and_sync(tmp_path, call):
    """Whichever call is the last, a folder is there, whole, and the next write succeeds."""
    write_folder(tmp_path / "m", fill("old"))
    code = f"""
import os, sys
from pathlib import Path
from tutelage.core import atomic
calls = []
def dies(real):
    def call(*args):
        calls.append(1)
        if len(calls) == {call}:
            os.kill(os.getpid(), 9)
        return real(*args)
    return call
os.rename, os.fsync = dies(os.rename), dies(os.fsync)
atomic.write_folder({str(tmp_path / "m")!r}, lambda folder: (folder / "a.txt").write_text("new"))
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    sweep(tmp_path)
    assert (tmp_path / "m/a.txt").read_text() in ("old", "new") and os.listdir(tmp_path) == ["m"]
    write_folder(tmp_path / "m", fill("newer"))
    assert (tmp_path / "m/a.txt").read_text() == "newer" and os.listdir(tmp_path) == ["m"]


def test_only_what_dead_writers_of_this_name_left_is_swept(tmp_path):
    names = [f".m.{DEAD}.part", f".m.{os.getppid()}.part", ".m.backup", ".m.2020.old.txt", f".other.{DEAD}.part"]
    for name in names:
        (tmp_path / name).mkdir()
    write_folder(tmp_path / "m", fill("x"))
    assert sorted(os.listdir(tmp_path)) == sorted([*names[1:], "m"])
    write_atomic(tmp_path / "t.json", "{}")
    (tmp_path / f".t.json.{DEAD}.part").write_text("half")
    write_atomic(tmp_path / "t.json", "[]")
    assert (tmp_path / "t.json").read_text() == "[]" and not list(tmp_path.glob(".t*"))


def test_words_of_a_full_disk_in_other_languages_and_of_data(tmp_path):
    """Rust libraries raise their own types; an error in the data that is being written is no fault of the disk."""

    def rust(folder):
        raise Exception("I/O error: No space left on device (os error 28)")

    def data(folder):
        raise DataError("f:1: cannot read on ([Errno 5] os error 5)")

    with pytest.raises(RunError, match="No space left"):
        write_folder(tmp_path / "m", rust)
    with pytest.raises(DataError, match="f:1"):
        write_folder(tmp_path / "m", data)
    assert os.listdir(tmp_path) == []


def test_logs_cut_in_the_middle_of_a_character_or_holding_any_text_are_read(tmp_path):
    run = RunDir(tmp_path / "r", "demo", {})
    run.open()
    texts = ["line\u2028separator", "next\u0085line", "红"]
    run.sample([{"step": i, "response": text} for i, text in enumerate(texts, 1)])
    with (tmp_path / "r/samples.jsonl").open("ab") as file:
        file.write('{"step": 4, "response": "红'.encode()[:-1])
    run.truncate_metrics(2)
    rows = (tmp_path / "r/samples.jsonl").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert [json.loads(row)["response"] for row in rows] == texts[:2]
    run.close()


def test_moving_an_older_run_aside_is_one_rename(tmp_path, monkeypatch, capsys):
    run = RunDir(tmp_path / "r", "demo", {"lr": 1})
    run.open()
    run.log({"step": 1})
    run.finish({"ok": 1})
    other = RunDir(tmp_path / "r", "demo", {"lr": 2})
    assert other.open(restart=True) == "fresh"
    moved = next(tmp_path.glob("r.old-*"))
    assert sorted(p.name for p in moved.iterdir() if p.name[0] != ".") == sorted(
        ["config.toml", "manifest.json", "metrics.jsonl", "summary.json", "events"]
    )
    assert f"r: an older run is moved to {moved.name}" in capsys.readouterr().err
    assert RunDir(moved, "demo", {"lr": 1}).open() == "finished"
    with pytest.raises(RunError, match="in use"):  # the new directory is claimed again
        RunDir(tmp_path / "r", "demo", {"lr": 2}).open()
    other.close()


def test_a_run_is_what_its_inputs_hold_wherever_they_lie(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("same")
    (tmp_path / "f.py").write_text("def one(): ...")
    one, two = (RunDir(tmp_path / "x", "demo", {"data": n}, {"data": n}) for n in map(str, tmp_path.glob("*.txt")))
    assert one.fingerprint == two.fingerprint
    (tmp_path / "b.txt").write_text("other")
    edited = str(tmp_path / "b.txt")
    assert RunDir(tmp_path / "x", "demo", {"data": edited}, {"data": edited}).fingerprint != one.fingerprint
    judge = str(tmp_path / "f.py")
    hashes = [RunDir(tmp_path / "x", "d", {"judge": f"{judge}:{n}"}, {"judge": judge}).fingerprint for n in "ab"]
    assert hashes[0] != hashes[1]  # another function of the same file


def test_a_finished_manifest_without_a_summary_is_not_finished(tmp_path):
    run = RunDir(tmp_path / "r", "demo", {})
    run.open()
    run.finish({"ok": 1})
    (tmp_path / "r/summary.json").unlink()
    assert run.open() == "resume"
    run.close()


def test_signals_reach_the_loop_the_rest_or_nobody(capfd):
    import signal

    with stops_at_once():
        with StopFlag() as stop:
            for _ in range(3):
                signal.raise_signal(signal.SIGTERM)
        assert stop.set
        with undisturbed():
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert capfd.readouterr().err.count("stopping: this step is finished and saved first") == 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_sync_of_the_folder_itself(tmp_path, monkeypatch):
    """A rename is only on the disk once the folder that holds the name is."""
    synced = []
    real = atomic._sync
    monkeypatch.setattr(atomic, "_sync", lambda path: (synced.append(path), real(path)))
    write_folder(tmp_path / "m", fill("x"))
    assert synced[-1] == tmp_path and any(p.name == "a.txt" for p in synced)
