"""Ctrl-C and SIGTERM in every stage: exit code 130 or 143, a line on what is saved, and the same command goes on."""

import json
import signal
import time

import pytest

from tutelage.train.checkpoint import load_latest, saved_steps

ENDLESS = 10**6


def lines(chain):
    """A command per stage that would take hours, and what it prints once it is at work."""
    tokenizer, sft, data = f"tokenizer={chain}/tokenizer", f"model={chain}/sft", f"data={chain}/prepare"
    return {
        "tokenizer": [f"documents={ENDLESS}"],
        "prepare": [tokenizer, f"documents={ENDLESS}"],
        "pretrain": [tokenizer, data, "model=preset:laptop-0.3m", f"steps={ENDLESS}", "batch_size=4"],
        "sft": [f"model={chain}/pretrain", "rows=60", "held_rows=20", f"steps={ENDLESS}", "batch_size=8"],
        "rank": [sft, f"prompts={20_000}", "held_out=8"],
        "reward": [sft, f"data={chain}/rank", f"steps={ENDLESS}", "batch_size=8"],
        "ppo": [sft, f"reward={chain}/reward", f"updates={ENDLESS}", "prompts=64", "batch_size=8", "max_tokens=6"],
        "grpo": [sft, f"reward={chain}/reward", f"updates={ENDLESS}", "prompts=64", "batch_size=8", "max_tokens=6"],
        "dpo": [sft, f"data={chain}/rank", f"updates={ENDLESS}", "batch_size=8", "eval_prompts=4"],
    }


LOOPS = ("pretrain", "sft", "reward", "ppo", "grpo", "dpo")


def at_work(process, out):
    """Its manifest is written and, where it steps, the first step is shown."""
    process.begins(out)
    if out.name in LOOPS:
        process.until(lambda: f"{out.name} 1/" in process.text() or "goes on after" in process.text())
    time.sleep(0.1)


@pytest.mark.parametrize(
    ("kind", "number"),
    [(kind, signal.SIGINT) for kind in ("tokenizer", "prepare", "rank", *LOOPS)]
    + [("prepare", signal.SIGTERM), ("rank", signal.SIGTERM), ("sft", signal.SIGTERM), ("ppo", signal.SIGTERM)],
)
def test_a_stage_is_stopped_and_goes_on(command, chain, tmp_path, kind, number):
    out = tmp_path / kind
    reached = []
    for again in range(2):
        process = command(kind, *lines(chain)[kind], f"out={out}")
        at_work(process, out)
        process.send(number)
        assert process.wait(60) == 128 + number, process.text()
        said = process.err.read_text()
        assert "Traceback" not in said and "error" not in said
        last = said.rstrip().splitlines()[-1]
        assert last.startswith(f"{out}: stopped") and last.endswith("the same command resumes"), said
        manifest = json.loads((out / "manifest.json").read_text())
        assert manifest["status"] == "stopped" and manifest["error"].startswith("Interrupted")
        assert [p.name for p in out.rglob(".*") if p.name != ".lock"] == []
        if kind in LOOPS:
            reached.append(saved_steps(out / "checkpoints")[-1])
            assert f"saved at step {reached[-1]} of" in last
            if again:
                assert f"goes on after step {reached[0]}" in said
            else:
                assert " ETA " in said and ("episodes/s" if kind in ("ppo", "grpo") else " tok/s") in said
        else:
            assert "begins anew" in last
    assert reached == sorted(set(reached))


def test_more_of_it_while_saving_breaks_nothing(command, chain, tmp_path):
    out = tmp_path / "sft"
    process = command("sft", *lines(chain)["sft"], f"out={out}")
    at_work(process, out)
    while process.poll() is None:  # impatient
        process.send(signal.SIGINT)
        time.sleep(0.002)
    assert process.code == 130 and "Traceback" not in process.text(), process.text()
    step, state = load_latest(out / "checkpoints")
    assert step == saved_steps(out / "checkpoints")[-1] and state["state"]["last"]
    assert json.loads((out / "manifest.json").read_text())["status"] in ("stopped", "running")


def test_a_recipe_stops_between_and_within_stages(command, tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        '[tokenizer]\ndocuments = 200\nvocab_size = 400\n[prepare]\ntokenizer = "@tokenizer"\ndocuments = 1000000\n'
    )
    for _ in range(2):
        process = command("run", recipe, f"out={tmp_path / 'r'}")
        process.says("stage 2 of 2")
        time.sleep(0.2)
        process.send(signal.SIGINT)
        assert process.wait(30) == 130 and "Traceback" not in process.text()
        assert process.err.read_text().rstrip().endswith("the same command resumes")
    assert json.loads((tmp_path / "r/tokenizer/manifest.json").read_text())["status"] == "finished"
