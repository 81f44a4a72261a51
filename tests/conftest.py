"""Shared fixtures: the folder of real data, command lines as processes, and a small chain of finished stages."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()  # what tutelage keeps between processes stays out of the user's home


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder named by TUTELAGE_DATA; without it a test skips, and with CI=true it fails."""
    named = os.environ.get("TUTELAGE_DATA")
    if not named or not Path(named).is_dir():
        message = "TUTELAGE_DATA does not name the folder of real data"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    return Path(named)


class Command:
    """A running `tutelage WORDS`, in a process group of its own."""

    def __init__(self, ask, words, cwd, folder, env):
        self.ask = ask
        self.out, self.err = (Path(tempfile.mktemp(suffix=name, dir=folder)) for name in (".out", ".err"))
        request = {"words": [str(w) for w in words], "cwd": str(cwd), "stdout": str(self.out), "stderr": str(self.err)}
        request["env"] = env or {}
        self.pid = ask(request)["pid"]
        self.code, self.started = None, time.time() - 0.01

    def poll(self):
        """The exit code (negative: the signal that ended it), or None while it runs."""
        if self.code is None:
            self.code = self.ask({"wait": self.pid})["code"]
        return self.code

    def wait(self, seconds=120):
        end = time.time() + seconds
        while self.poll() is None:
            assert time.time() < end, f"still running after {seconds} s: {self.text()}"
            time.sleep(0.01)
        return self.code

    def until(self, condition, seconds=120):
        """Wait until `condition()` holds."""
        end = time.time() + seconds
        while not condition():
            assert self.poll() is None, f"ended with {self.code} too early: {self.text()}"
            assert time.time() < end, f"not within {seconds} s: {self.text()}"
            time.sleep(0.002)

    def says(self, words, seconds=120):
        """Wait until it has printed `words`."""
        self.until(lambda: words in self.text(), seconds)

    def begins(self, out):
        """Wait until its run directory's manifest is written."""
        file = Path(out) / "manifest.json"
        self.until(lambda: file.exists() and file.stat().st_mtime >= self.started)

    def send(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self):
        self.send(signal.SIGKILL)
        return self.wait()

    def text(self):
        """Everything it printed."""
        return "".join(f.read_text(errors="replace") for f in (self.out, self.err) if f.exists())


@pytest.fixture(scope="session")
def _forks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("zygote.py"))], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert json.loads(server.stdout.readline()) == "ready"

    def ask(request):
        server.stdin.write(json.dumps(request).encode() + b"\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    yield ask, folder
    server.stdin.close()
    server.wait(10)


@pytest.fixture
def command(_forks, tmp_path):
    """command(*words, cwd=..., env=...) starts `tutelage *words` as a process; what still runs at the end is killed."""
    ask, folder = _forks
    started = []

    def start(*words, cwd=tmp_path, env=None):
        started.append(Command(ask, words, cwd, folder, env))
        return started[-1]

    yield start
    for one in started:
        if one.poll() is None:
            one.kill()


@pytest.fixture(scope="session")
def chain(tmp_path_factory):
    """Finished runs tokenizer, prepare, pretrain, sft, rank and reward of the embedded world, very small."""
    from tutelage.pipeline.stages import launch

    out = tmp_path_factory.mktemp("chain")

    def stage(kind, **values):
        launch(kind, {**values, "out": str(out / kind)})

    model = {"model": str(out / "sft")}
    stage("tokenizer", documents=200, vocab_size=400)
    stage("prepare", tokenizer=str(out / "tokenizer"), documents=300, validation=40)
    stage(
        "pretrain", tokenizer=str(out / "tokenizer"), data=str(out / "prepare"), model="preset:laptop-0.3m", steps=20,
        batch_size=8, block_size=64, eval_every=0, save_every=0, precision="fp32",
    )  # fmt: skip
    stage("sft", model=str(out / "pretrain"), rows=200, held_rows=40, steps=10, batch_size=16, precision="fp32")
    stage("rank", **model, prompts=24, held_out=12, max_tokens=8)
    stage("reward", **model, data=str(out / "rank"), steps=3, batch_size=8, precision="fp32")
    return out
