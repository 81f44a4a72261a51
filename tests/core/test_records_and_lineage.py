"""Rows are named by line when bad; inputs are hashed by content; failed runs are marked; events can be read back."""

import hashlib
import json
import os
import struct
import time

import pytest

from tutelage.core import lineage, records
from tutelage.core.errors import DataError, RunError
from tutelage.core.events import masked_crc
from tutelage.core.lineage import EDGE, content_digest, parent_entry
from tutelage.core.rundir import RunDir, read_manifest


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        (records.PromptRow, {"question": "?"}, "no 'prompt' .keys: question."),
        (records.PromptRow, {"prompt": 3}, "'prompt' is a int"),
        (records.PromptRow, {"prompt": ""}, "'prompt' is empty"),
        (records.PromptRow, {"prompt": [{"role": "robot", "content": "x"}]}, "prompt.0.role: .*'user'"),
        (records.PairRow, {"prompt": "a", "chosen": "b"}, "no 'rejected'"),
        (records.RankingRow, {"prompt": "a", "responses": ["b"], "ranking": [[0]]}, "at least 2"),
        (records.RankingRow, {"prompt": "a", "responses": ["b", "c"], "ranking": [[0]]}, "each of 0..1 exactly once"),
        (records.ConversationRow, {"messages": []}, "'messages' is empty"),
        (records.TextRow, {"text": None}, "'text' is a NoneType"),
        (records.LabelRow, {"prompt": "a", "completion": "b", "label": 1}, "'label' is a int"),
    ],
)
def test_a_bad_row_names_line_fault_and_shape(kind, row, message):
    with pytest.raises(DataError, match=rf"f.jsonl:7: .*{message}.*; expected .") as error:
        records.check_row(row, kind, "f.jsonl:7")
    assert str(error.value).endswith(records.EXPECTED[kind])


def test_skipped_rows_are_counted_once_and_listed(tmp_path):
    rows = [("f:1", {"prompt": "a"}), ("f:2", {"prompt": 1}), ("f:3", {"prompt": "b", "answer": 3})]
    run = RunDir(tmp_path / "r", "demo", {"on_bad_row": "skip"})
    run.open()
    for _ in range(2):  # train and held-out are read from the same file
        kept = [row for _, row in records.validate_rows(rows, records.PromptRow, run.bad_rows)]
    assert kept == [{"prompt": "a"}, {"prompt": "b", "answer": 3}]
    run.finish({})
    found = read_manifest(tmp_path / "r")["bad_rows"]
    assert found["count"] == 1 and found["first"][0].startswith("f:2: 'prompt' is a int")
    assert RunDir(tmp_path / "r", "demo", {"on_bad_row": "stop"}).open() == "finished"  # no part of the identity


def test_an_edited_input_of_the_same_length_is_another_input(tmp_path):
    file = tmp_path / "data.txt"
    file.write_text("one two")
    first = parent_entry(file)["hash"]
    file.write_text("one too")
    assert parent_entry(file)["hash"] != first
    folder = parent_entry(tmp_path)["hash"]
    (tmp_path / ".cache").write_text("x")
    assert parent_entry(tmp_path)["hash"] == folder
    file.write_text("one two")
    assert parent_entry(file)["hash"] == first


def test_a_very_large_file_is_known_by_its_ends_and_time(tmp_path, monkeypatch):
    monkeypatch.setattr("tutelage.core.lineage.WHOLE", EDGE)
    file = tmp_path / "large"
    file.write_bytes(b"a" * (3 * EDGE))
    os.utime(file, (1, 1))
    first = parent_entry(file)["hash"]
    file.write_bytes(b"a" * (3 * EDGE - 1) + b"b")
    os.utime(file, (1, 1))
    second = parent_entry(file)["hash"]
    os.utime(file, (2, 2))
    assert len({first, second, parent_entry(file)["hash"]}) == 3


def test_manifest_tells_machine_and_code_and_failure(tmp_path):
    run = RunDir(tmp_path / "r", "demo", {"seed": 5})
    run.open()
    run.note(device="cpu", threads=2, dtype="fp32")
    run.fail(ValueError("boom\nsecond line"))
    run.close()
    manifest = read_manifest(tmp_path / "r")
    assert manifest["status"] == "failed" and manifest["error"] == "ValueError: boom"
    assert manifest["seed"] == 5 and manifest["threads"] == 2 and manifest["cpu"] and manifest["argv"]
    assert manifest["versions"]["torch"] != "absent" and "commit" in manifest and manifest["seconds"] >= 0
    assert run.open() == "resume"
    run.note(threads=1)
    manifest = read_manifest(tmp_path / "r")
    assert "error" not in manifest and "threads=1, begun with 2" in manifest["warnings"][0]
    run.close()


def test_a_run_that_broke_off_with_nothing_is_reclaimed_but_work_never(tmp_path):
    run = RunDir(tmp_path / "r", "demo", {"lr": 1})
    run.open()
    run.fail(ValueError("at once"))
    run.close()
    second = RunDir(tmp_path / "r", "demo", {"lr": 2})
    assert second.open() == "fresh" and not list(tmp_path.glob("r.old-*"))
    second.log({"step": 1, "loss": 2.0})
    second.fail(ValueError("later"))
    second.close()
    with pytest.raises(RunError, match="another configuration"):
        RunDir(tmp_path / "r", "demo", {"lr": 3}).open()
    assert RunDir(tmp_path / "r", "demo", {"lr": 3}).open(restart=True) == "fresh"
    assert "loss" in (next(tmp_path.glob("r.old-*")) / "metrics.jsonl").read_text()


def test_a_damaged_manifest_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text('{"kind": "x"')
    with pytest.raises(RunError, match="manifest.json: damaged"):
        RunDir(tmp_path, "demo", {}).open()


def records_of(data: bytes) -> list[bytes]:
    out = []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        body = data[12 : 12 + size]
        assert struct.unpack("<I", data[8:12])[0] == masked_crc(data[:8])
        assert struct.unpack("<I", data[12 + size : 16 + size])[0] == masked_crc(body)
        out.append(body)
        data = data[16 + size :]
    return out


def test_events_hold_the_metrics_rows(tmp_path):
    run = RunDir(tmp_path / "r", "demo", {})
    run.open()
    run.log({"step": 300, "loss": 0.5, "note": "text is no scalar", "broken": float("nan")})
    run.sample([{"step": 300, "response": "hm"}, {"step": 400, "response": "later"}])
    run.truncate_metrics(300)
    run.close()
    assert json.loads((tmp_path / "r/samples.jsonl").read_text())["response"] == "hm"
    version, session, event = records_of(next((tmp_path / "r/events").iterdir()).read_bytes())
    assert b"brain.Event:2" in version and session.endswith(b"\x3a\x02\x08\x01")
    assert event[9:12] == b"\x10\xac\x02"  # step 300
    assert b"loss\x15" + struct.pack("<f", 0.5) in event and b"note" not in event and b"broken" not in event


def test_checksum_is_crc32c():
    def unmask(value):
        value = (value - 0xA282EAD8) & 0xFFFFFFFF
        return (value >> 17 | value << 15) & 0xFFFFFFFF

    assert unmask(masked_crc(b"123456789")) == 0xE3069283  # the check value of CRC-32C


def test_a_large_file_is_read_once_and_again_when_it_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(lineage, "WHOLE", 100)
    file, read, real = tmp_path / "w.safetensors", [], hashlib.file_digest
    monkeypatch.setattr(lineage.hashlib, "file_digest", lambda *given: read.append(1) or real(*given))
    file.write_bytes(b"a" * 500)
    first = content_digest(file)
    assert content_digest(file) == first and len(read) == 2  # written just now: its times say nothing yet
    monkeypatch.setattr(lineage, "SETTLED", float("-inf"))
    assert [content_digest(file) for _ in range(3)] == [first] * 3 and len(read) == 3
    times = file.stat()
    time.sleep(0.02)  # the file system's clock moves on
    file.write_bytes(b"a" * 250 + b"b" + b"a" * 249)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # same size and time, another byte in the middle
    assert content_digest(file) != first and len(read) == 4
