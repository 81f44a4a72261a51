"""Batch inference: one line a prompt, in order, whatever interrupts it; a changed input is refused."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.servers import JsonHandler, serving
from tutelage.core.errors import ConfigError, DataError, RunError
from tutelage.engine import SamplingParams, load
from tutelage.pipeline import batch
from tutelage.pipeline.batch import generate_file
from tutelage.text.corpus import corpus_files


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


PROMPTS = ["sam is in the", "eva is in", "the cat", "tom has 3 apples and"]


def some(count: int) -> list[dict[str, Any]]:
    """Prompts again and again, with a column, some with parameters of their own, some bad."""
    rows: list[dict[str, Any]] = [{"id": f"r{i}", "prompt": PROMPTS[i % 4]} for i in range(count)]
    rows[1]["prompt"] = [{"role": "user", "content": "where is eva?"}]
    rows[2]["params"] = {"temperature": 0, "max_tokens": 3}
    rows[3]["prompt"] = ""
    rows[5]["prompt"] = "long " * 400
    rows[6]["params"] = {"n": 2}
    return rows


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    return write(tmp_path / "prompts.jsonl", some(20))


def words(chain: Path, asked: Path, out: Path, **more: Any) -> dict[str, Any]:
    common = {"model": str(chain / "sft"), "prompts": str(asked), "out": str(out), "max_tokens": 6, "batch": 4}
    return {**common, "device": "cpu", **more}


def test_rows_columns_errors_and_parameters(chain: Path, asked: Path, tmp_path: Path) -> None:
    path, said = generate_file(words(chain, asked, tmp_path / "a.jsonl"))
    rows = read(path)
    assert [(row["index"], row["id"]) for row in rows] == [(i, f"r{i}") for i in range(20)]
    assert rows[3]["error"] == "the prompt is empty" and "completion" not in rows[3]
    assert re.match(r"the prompt has \d+ tokens and the model's context is 256", rows[5]["error"])
    assert said.startswith(f"wrote {path}: 20 rows, 2 of them with an error (first: row 3: the prompt is empty")
    fine = [row for i, row in enumerate(rows) if i not in (3, 5, 6)]
    assert all(isinstance(row["completion"], str) and row["finish_reason"] and "error" not in row for row in fine)
    assert len(rows[6]["responses"]) == 2 == len(rows[6]["finish_reason"])
    engine = load(chain / "sft", device="cpu")
    assert rows[2]["completion"] == engine.generate([PROMPTS[2]], SamplingParams(temperature=0, max_tokens=3))[0].text
    same = [rows[i]["completion"] for i in range(0, 20, 4)]
    assert len(set(same)) > 1  # equal prompts in other rows draw otherwise
    assert [p.name for p in corpus_files(tmp_path)] == ["a.jsonl", "prompts.jsonl"]  # the manifest is no data


def test_again_it_is_finished_and_another_command_is_refused(chain: Path, asked: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    generate_file(words(chain, asked, out))
    before = out.read_bytes()
    assert generate_file(words(chain, asked, out, batch=7, workers=3))[1].startswith("already finished")
    with pytest.raises(RunError, match=r"a.jsonl: was begun with other .*temperature=1.0 then and 0.5 now.*restart="):
        generate_file(words(chain, asked, out, temperature=0.5))
    with pytest.raises(RunError, match="model: other .*weights"):
        generate_file({**words(chain, asked, out), "model": str(chain / "pretrain")})
    asked.write_text(asked.read_text() + '{"prompt": "more"}\n')
    with pytest.raises(RunError, match="prompts="):
        generate_file(words(chain, asked, out))
    assert out.read_bytes() == before
    generate_file(words(chain, asked, out), restart=True)
    assert len(read(out)) == 21 and next(tmp_path.glob("a.jsonl.old-*")).read_bytes() == before


def test_weights_that_changed_are_refused_and_a_copy_of_them_is_not(chain: Path, asked: Path, tmp_path: Path) -> None:
    """The manifest of the model's run says the same before and after: the weights themselves are looked at."""
    model, out = tmp_path / "model", tmp_path / "a.jsonl"
    shutil.copytree(chain / "sft", model)
    line = {**words(chain, asked, out), "model": str(model)}
    whole = generate_file(line)[0].read_bytes()

    def cut() -> None:
        manifest = tmp_path / ".a.jsonl.manifest.json"
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "status": "running"}))
        out.write_bytes(whole[: len(whole) // 2])

    cut()
    file = model / "model/model.safetensors"
    sound, times = file.read_bytes(), file.stat()
    file.write_bytes(sound[:-2] + bytes(2))  # the last bits of one weight, as the same number of bytes
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(RunError, match=r"a.jsonl: was begun with other .*\(model: other weights\); choose another"):
        generate_file(line)
    file.write_bytes(sound)
    (model / "model/README.md").write_text("a card")
    tokenizer = model / "model/tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    with pytest.raises(RunError, match=r"\(model: other tokenizer\)"):
        generate_file(line)
    shutil.copy(chain / "sft/model/tokenizer.json", tokenizer)
    generate_file(line)
    assert out.read_bytes() == whole
    cut()
    generate_file({**line, "model": str(chain / "sft")})  # the same model elsewhere
    assert out.read_bytes() == whole


def test_a_file_of_somebody_else_is_left_alone(chain: Path, asked: Path, tmp_path: Path) -> None:
    out = write(tmp_path / "a.jsonl", [{"mine": 1}])
    with pytest.raises(RunError, match="is there already, and no unfinished `generate` wrote it"):
        generate_file(words(chain, asked, out))
    with pytest.raises(RunError):
        generate_file(words(chain, asked, asked))  # out= is the file of prompts
    assert read(out) == [{"mine": 1}] and len(read(asked)) == 20
    generate_file(words(chain, asked, tmp_path / "b.jsonl"))
    with (tmp_path / "b.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(RunError, match="changed since it was finished"):
        generate_file(words(chain, asked, tmp_path / "b.jsonl"))


@pytest.mark.parametrize("cut", [1, 0.3, 0.5, 0.97, 0.999])
def test_a_file_cut_anywhere_goes_on_to_the_same_bytes(
    chain: Path, asked: Path, tmp_path: Path, cut: float, capsys: Any
) -> None:
    """What a kill -9 in the middle of writing leaves, without the waiting."""
    whole = generate_file(words(chain, asked, tmp_path / "whole.jsonl"))[0].read_bytes()
    out = tmp_path / "a.jsonl"
    generate_file(words(chain, asked, out))
    manifest = tmp_path / ".a.jsonl.manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "status": "running"}))
    out.write_bytes(whole[: int(len(whole) * cut)])
    with pytest.raises(RunError, match="temperature"):
        generate_file(words(chain, asked, out, temperature=0.5))
    generate_file(words(chain, asked, out))
    assert out.read_bytes() == whole
    if cut == 0.5:
        old = json.loads(manifest.read_text())
        manifest.write_text(json.dumps({**old, "status": "running", "facts": {**old["facts"], "device": "cuda:0"}}))
        out.write_bytes(whole[: len(whole) // 2])
        generate_file(words(chain, asked, out))
        assert "goes on with device=cpu, begun with cuda:0" in capsys.readouterr().err and out.read_bytes() == whole
        out.write_bytes(whole.replace(b'"index": 2,', b'"index": 7,'))
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "status": "running"}))
        with pytest.raises(RunError, match="a.jsonl:3: not the row that belongs there"):
            generate_file(words(chain, asked, out))


def test_killed_and_stopped_at_random(command: Any, chain: Path, tmp_path: Path) -> None:
    """kill -9 three times and Ctrl-C once, the same command again each time: the bytes of an unbroken run."""
    asked = write(tmp_path / "prompts.jsonl", some(400))
    more = ["generate", f"model={chain / 'sft'}", f"prompts={asked}", "max_tokens=12", "batch=8", "device=cpu"]
    one = command(*more, f"out={tmp_path / 'whole.jsonl'}")
    began = time.time()
    assert one.wait() == 0, one.text()
    length, out, rng = time.time() - began, tmp_path / "killed.jsonl", random.Random(1)
    for number in (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
        size = out.stat().st_size if out.exists() else 0
        process = command(*more, f"out={out}")
        process.until(lambda size=size: out.exists() and out.stat().st_size > size)
        time.sleep(rng.uniform(0, 0.06) * length)
        process.send(number)
        code = process.wait()
        assert code == (130 if number == signal.SIGINT else -number), process.text()
        if number == signal.SIGINT:
            assert re.search(r"stopped; \d+ of 400 rows are written; the same command goes on", process.text())
    assert len(read_whole_lines(out)) < 400
    last = command(*more, f"out={out}")
    assert last.wait() == 0, last.text()
    assert re.search(r"goes on after \d+ of 400 rows", last.text()) and "wrote" in last.text()
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes() and len(read(out)) == 400


def read_whole_lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1]


def test_two_at_once(command: Any, chain: Path, tmp_path: Path) -> None:
    asked = write(tmp_path / "prompts.jsonl", some(400))
    line = ["generate", chain / "sft", f"prompts={asked}", f"out={tmp_path / 'a.jsonl'}", "batch=2", "device=cpu"]
    first = command(*line)
    first.until(lambda: (tmp_path / "a.jsonl").exists())
    second = command(*line)
    assert second.wait() == 1 and "being written by another process" in second.text()
    first.kill()


BAD = {
    '{"prompt": "a"': r"bad.jsonl:2: not JSON",
    "[1]": r"bad.jsonl:2: a JSON list",
    '{"text": "a"}': r"bad.jsonl:2: no 'prompt' \(keys: text\); expected \{\"prompt\"",
    '{"prompt": 3}': r"bad.jsonl:2: 'prompt' is a int",
    '{"prompt": [{"role": "user"}]}': r"bad.jsonl:2: prompt",
    '{"prompt": "a", "params": {"temprature": 1}}': r"bad.jsonl:2: params: .*did you mean 'temperature'",
    '{"prompt": "a", "params": {"temperature": -1}}': r"bad.jsonl:2: temperature must be finite and at least 0",
    '{"prompt": "a", "params": {"max_tokens": "x"}}': r"bad.jsonl:2: params: max_tokens='x'",
    '{"prompt": "a", "params": 3}': r"bad.jsonl:2: ",
    '{"prompt": "a", "completion": "x"}': r"bad.jsonl:2: has a column 'completion'.*into=OTHER",
    '{"prompt": "a", "index": 3}': r"bad.jsonl:2: has a column 'index'.*rename it",
}


@pytest.mark.parametrize("line", BAD)
def test_a_broken_row_is_named_before_anything_is_done(chain: Path, tmp_path: Path, line: str) -> None:
    asked = write(tmp_path / "bad.jsonl", [{"prompt": "fine"}, line])
    with pytest.raises(DataError, match=BAD[line]):
        generate_file({"model": "nowhere", "prompts": str(asked), "out": str(tmp_path / "a.jsonl")})
    assert [p.name for p in tmp_path.iterdir()] == ["bad.jsonl"]


def test_wrong_commands(command: Any, chain: Path, asked: Path, tmp_path: Path) -> None:
    def says(pattern: str, *line: Any) -> None:
        process = command("generate", *line)
        assert process.wait() == 1 and re.search(pattern, process.text()), process.text()

    here, out = f"prompts={asked}", "out=a.jsonl"
    says(r"generate: no model=; it must be given; no out=", here)
    says(r"unknown key 'temprature'; did you mean 'temperature'", chain / "sft", here, out, "temprature=1")
    says(r"out='a.txt': expected a file name that ends in .jsonl", chain / "sft", here, "out=a.txt")
    says(r"generate: temperature must be finite and at least 0, got nan", chain / "sft", here, out, "temperature=nan")
    says(r"expected one of the two", chain / "sft", here, out, "prompt=a")
    says(r"expected one model", chain / "sft", here, out, "model=b")
    says(r"none.jsonl: no such file", chain / "sft", "prompts=none.jsonl", out)
    says(r"no model in './nowhere'", "./nowhere", here, out)
    says(r"no rows; expected at least one", chain / "sft", f"prompts={write(tmp_path / 'empty.jsonl', [])}", out)
    says(r"no prompt= \(nor prompts=FILE\)", chain / "sft")
    assert not (tmp_path / "a.jsonl").exists()


def test_from_a_recipe_chat_and_columns(command: Any, chain: Path, tmp_path: Path) -> None:
    asked = write(tmp_path / "p.jsonl", [{"prompt": "where is eva?", "completion": "in the park"}] * 2)
    recipe = tmp_path / "g.toml"
    recipe.write_text(f'model = "{chain / "sft"}"\nprompts = "{asked}"\nchat = true\ntemperature = 0\nmax_tokens = 9\n')
    process = command("generate", recipe, f"out={tmp_path / 'a.jsonl'}", "into=answer", "logprobs=0", "device=cpu")
    assert process.wait() == 0, process.text()
    (row, _), turn = read(tmp_path / "a.jsonl"), [{"role": "user", "content": "where is eva?"}]
    engine = load(chain / "sft", device="cpu")
    made = engine.generate([turn], SamplingParams(temperature=0, max_tokens=9))[0].completions[0]
    assert row["answer"] == made.text and row["completion"] == "in the park" and row["prompt"] == "where is eva?"
    assert row["logprobs"] == pytest.approx(made.logprobs, abs=1e-4)
    one = command("generate", f"model={chain / 'sft'}", "prompt=sam is", "temperature=0", "max_tokens=4")
    assert one.wait() == 0 and one.text().startswith("sam is")


class Handler(JsonHandler):
    failing = threading.Event()
    keys: list[str | None] = []

    def do_GET(self) -> None:
        self.answer({"data": [{"id": "tiny"}]})

    def do_POST(self) -> None:
        body = self.body()
        self.keys.append(self.headers.get("Authorization"))
        said = body.get("prompt") or body["messages"][-1]["content"]
        if "p11 " in f"{said} " and self.failing.is_set():
            self.answer({"error": {"message": "overloaded"}}, 500)
        elif "long" in said:
            self.answer({"error": {"message": "longer than the context"}}, 400)
        else:
            choice = {"text": f"{said}/{body['seed']}", "finish_reason": "stop"}
            self.answer({"choices": [choice] * body["n"]})


@pytest.fixture
def url() -> Iterator[str]:
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as address:
        yield address
    Handler.failing.clear()


def test_a_server_that_fails_in_between(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-mine")
    rows = [{"prompt": f"p{i}"} for i in range(30)]
    rows[4]["prompt"] = "long"
    asked, out = write(tmp_path / "p.jsonl", rows), tmp_path / "a.jsonl"
    line = {"model": url, "prompts": str(asked), "out": str(out), "batch": 8, "retries": 0, "api_key_env": "MY_KEY"}
    Handler.failing.set()
    with pytest.raises(DataError, match=r"p.jsonl:12: .*500: overloaded; 11 of 30 rows are written.*on_server_error"):
        generate_file(line)
    assert [row["index"] for row in read(out)] == list(range(11))
    Handler.keys.clear()
    Handler.failing.clear()
    assert "30 rows, 1 of them with an error (first: row 4: " in generate_file(line)[1]
    assert len(Handler.keys) == 19 and set(Handler.keys) == {"Bearer sk-mine"}  # what was answered is not asked again
    found = read(out)
    assert "400: longer than the context" in found[4]["error"]
    assert all(row["completion"].startswith(f"p{i}/") for i, row in enumerate(found) if i != 4)
    assert len({row["completion"].partition("/")[2] for i, row in enumerate(found) if i != 4}) == 29  # seeds
    assert "sk-mine" not in "".join(p.read_text() for p in tmp_path.iterdir() if p.is_file())
    other = tmp_path / "b.jsonl"
    generate_file({**line, "out": str(other)})
    assert other.read_bytes() == out.read_bytes()
    Handler.failing.set()
    _, said = generate_file({**line, "out": str(tmp_path / "c.jsonl"), "on_server_error": "write"})
    assert "30 rows, 2 of them with an error" in said
    with pytest.raises(RunError, match="model="):
        generate_file({**line, "served_model": "other"})
    with pytest.raises(ConfigError, match="NOT_THERE"):
        generate_file({**line, "api_key_env": "NOT_THERE"})


def test_memory_is_bounded_by_the_batch(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    answer = batch._answer
    monkeypatch.setattr(batch, "_answer", lambda c, e, part: (sizes.append(len(part)), answer(c, e, part))[1])
    asked = write(tmp_path / "p.jsonl", [{"prompt": f"p{i}"} for i in range(30)])
    generate_file({"model": url, "prompts": str(asked), "out": str(tmp_path / "a.jsonl"), "batch": 8})
    assert sizes == [8, 8, 8, 6]


def test_a_disk_that_is_full(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = write(tmp_path / "p.jsonl", [{"prompt": f"p{i}"} for i in range(30)])
    line = {"model": url, "prompts": str(asked), "out": str(tmp_path / "a.jsonl"), "batch": 8}
    whole = generate_file({**line, "out": str(tmp_path / "whole.jsonl")})[0].read_bytes()
    real, left = os.fsync, [8]

    def fsync(handle: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(RunError, match="No space left"):
        generate_file(line)
    monkeypatch.undo()
    assert generate_file(line)[0].read_bytes() == whole


def test_messages_that_the_template_refuses_are_an_error_of_their_row(chain: Path) -> None:
    engine = load(chain / "sft", device="cpu")
    engine.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    outputs = engine.generate([[{"role": "user", "content": "a"}], "sam is"], SamplingParams(max_tokens=2, seed=0))
    assert "roles must alternate" in (outputs[0].error or "") and outputs[1].error is None
