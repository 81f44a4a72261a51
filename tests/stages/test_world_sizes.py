"""Two processes under torchrun's environment against one: curves, refusals, errors, another world size on resume."""

import json
import signal
import socket

import pytest

from tutelage.core.config import parse_words
from tutelage.pipeline.stages import launch

TIMES = {"seconds", "tokens_per_second", "episodes_per_second"}


def world(command, size, *words):
    """The processes of one command, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [command(*words, env={**common, "RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(size)]


def rows_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def gap(ours, theirs):
    """The largest relative difference of two runs' logged numbers."""
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    pairs = [(a[k], b[k]) for a, b in zip(ours, theirs) for k in a if k not in TIMES and isinstance(a[k], int | float)]
    return max(abs(a - b) / (1e-3 + abs(a)) for a, b in pairs)


def words_of(chain, kind):
    common = ["precision=fp32", "save_every=0"]
    if kind == "pretrain":
        return [*common, f"tokenizer={chain}/tokenizer", f"data={chain}/prepare", "model=preset:laptop-0.3m", "steps=4",
                "batch_size=4", "block_size=16", "eval_every=2"]  # fmt: skip
    if kind == "sft":
        return [*common, f"model={chain}/pretrain", "rows=40", "held_rows=8", "steps=3", "batch_size=5", "eval_every=0",
                "optimizer.name=adamw", f"ptx_data={chain}/prepare", "ptx_batch=2", "ptx_block=16"]  # fmt: skip
    if kind == "reward":
        return [*common, f"model={chain}/sft", f"data={chain}/rank", "steps=3", "batch_size=3"]
    return [*common, f"model={chain}/sft", f"reward={chain}/reward", f"ptx_data={chain}/prepare", "ptx_batch=2",
            "ptx_block=16", "prompts=20", "updates=2", "batch_size=6", "minibatches=2", "max_tokens=4",
            "kl_target=0.1"]  # fmt: skip


@pytest.mark.parametrize("kind, parallel, bar", [
    ("pretrain", "ddp", 1e-4), ("pretrain", "fsdp", 1e-4), ("sft", "fsdp", 1e-4), ("reward", "ddp", 1e-4),
    ("ppo", "ddp", 1e-3), ("ppo", "fsdp", 1e-3),
])  # fmt: skip
def test_two_processes_have_one_process_curve(chain, command, tmp_path, kind, parallel, bar):
    words = words_of(chain, kind)
    whole, _ = launch(kind, {**parse_words(words), "out": str(tmp_path / "whole")})
    both = world(command, 2, kind, *words, f"parallel={parallel}", f"out={tmp_path}/both")
    assert [one.wait() for one in both] == [0, 0], "".join(one.text() for one in both)
    assert gap(rows_of(whole), rows_of(tmp_path / "both")) < bar
    assert "wrote" in both[0].text() and both[1].text() == ""  # rank 0 alone prints
    assert not list((tmp_path / "both").rglob(".*.part"))


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_stopped_on_two_it_goes_on_with_one(chain, command, tmp_path, parallel):
    words = [*words_of(chain, "pretrain"), "steps=40", "eval_every=0"]
    whole, _ = launch("pretrain", {**parse_words(words), "out": str(tmp_path / "whole")})
    out = tmp_path / "both"
    both = world(command, 2, "pretrain", *words, f"parallel={parallel}", f"out={out}")
    both[0].until(lambda: (out / "metrics.jsonl").exists())
    both[1].send(signal.SIGTERM)  # what one rank is told, all do
    assert [one.wait() for one in both] == [130, 143], "".join(one.text() for one in both)
    launch("pretrain", {**parse_words(words), "out": str(out)})
    assert gap(rows_of(whole), rows_of(out)) < 1e-4


def test_what_is_not_shared_is_refused(chain, command, tmp_path):
    both = world(command, 2, "metaicl", f"model={chain}/sft", "tasks=[subj]", f"out={tmp_path}/out")
    assert [one.wait() for one in both] == [1, 1]
    assert "does not share its work among processes yet, and 2 were started" in "".join(one.text() for one in both)
    both = world(command, 2, "chat", str(chain / "sft"))
    assert [one.wait() for one in both] == [1, 1] and "chat runs in one process" in both[0].text()


def test_a_stage_of_one_process_runs_once(chain, command, tmp_path):
    both = world(command, 2, "tokenizer", "documents=20", "vocab_size=300", f"out={tmp_path}/out")
    assert [one.wait() for one in both] == [0, 0], "".join(one.text() for one in both)
    assert (tmp_path / "out/summary.json").is_file()


def test_one_ranks_error_ends_all_with_its_words(chain, command, tmp_path):
    """The judge fails on the second rank alone."""
    judge = tmp_path / "judge.py"
    text = "import os\ndef score(prompts, completions, **more):\n    assert os.environ['RANK'] == '0', 'no!'\n"
    judge.write_text(text + "    return [1.0] * len(completions)\n")
    words = [w for w in words_of(chain, "ppo") if not w.startswith("reward=")]
    both = world(command, 2, "ppo", *words, f"reward={judge}:score", f"out={tmp_path}/out")
    assert [one.wait() for one in both] == [1, 1]
    said = "".join(one.text() for one in both)
    assert said.count("no!") == 1
    assert "no!" in json.loads((tmp_path / "out/manifest.json").read_text())["error"]
