"""The reward stage on files: any shape, bad rows skipped and listed, another held-out file is another run."""

import gzip
import json

import pytest

from tutelage.core.errors import DataError, RunError
from tutelage.core.rundir import read_manifest
from tutelage.model.hub import create_model, save_model
from tutelage.pipeline.stages import launch, read_summary
from tutelage.text.tokenizer import train_tokenizer
from tutelage.train.checkpoint import load_latest

WORDS = "the cat sat on a mat and saw one dog run far away".split()


def pair(i, **more):
    asked, answer = WORDS[i % 13], " ".join(WORDS[: 2 + i % 9])
    prompt = f"tell {i} {asked} " + "very " * (i % 20) + "now"
    return {"prompt": prompt, "chosen": answer, "rejected": f"no {i}", **more}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base model without chat tokens, as one comes from pretraining elsewhere."""
    tokenizer = train_tokenizer([" ".join(WORDS)] * 9, 320)
    folder = tmp_path_factory.mktemp("base") / "model"
    save_model(create_model("laptop-0.3m", tokenizer, 128), tokenizer, folder)
    return str(folder)


def go(base, out, **values):
    path, ran = launch("reward", {"model": base, "features": False, "steps": 3, "batch_size": 4, "max_length": 24,
                                  "out": str(out), **values})  # fmt: skip
    return path, ran, read_summary(path)


def test_pairs_with_soft_labels_and_bad_rows(base, tmp_path):
    rows = [pair(i, **({"p_chosen": 0.7} if i % 3 else {})) for i in range(60)]
    rows[5]["rejected"] = rows[5]["chosen"]
    with gzip.open(tmp_path / "pairs.json.gz", "wt", encoding="utf-8") as file:
        json.dump(rows, file)
    data = str(tmp_path / "pairs.json.gz")
    with pytest.raises(DataError, match=r"pairs.json.gz:1: 'chosen' and 'rejected' are the same"):
        go(base, tmp_path / "stop", data=data)
    path, _, found = go(base, tmp_path / "skip", data=data, on_bad_row="skip")
    assert read_manifest(path)["bad_rows"]["count"] == 1
    assert found["train_prompts"] + found["held_prompts"] == 59 and found["pairs"] == found["held_prompts"]
    assert found["prompts_cut"] > 0 and found["responses_cut"] == 0
    assert 0 <= found["train_accuracy"] <= 1 and found["length_rule"] == "longer"
    _, _, few = go(base, tmp_path / "few", data=data, on_bad_row="skip", rows=10, held_rows=2)
    assert few["train_prompts"] == 10 and few["held_prompts"] <= 2


def test_a_changed_held_out_file_is_another_run(base, tmp_path):
    data, apart = tmp_path / "p.jsonl", tmp_path / "h.jsonl"
    data.write_text("".join(json.dumps(pair(i)) + "\n" for i in range(12)))
    apart.write_text("".join(json.dumps(pair(i)) + "\n" for i in range(100, 104)))
    path, ran, found = go(base, tmp_path / "r", data=str(data), held_out=str(apart))
    assert ran and (found["train_prompts"], found["held_prompts"]) == (12, 4)
    assert not go(base, tmp_path / "r", data=str(data), held_out=str(apart))[1]
    apart.write_text(json.dumps(pair(200)) + "\n")
    with pytest.raises(RunError, match="another configuration or other inputs"):
        go(base, tmp_path / "r", data=str(data), held_out=str(apart))


def test_resume_is_bit_equal(base, tmp_path):
    data = tmp_path / "p.jsonl"
    rows = [{"prompt": f"tell {i}", "responses": WORDS[i : i + 2 + i % 3], "ranking": [[0], list(range(1, 2 + i % 3))]}
            for i in range(10)]  # fmt: skip
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole, _, expected = go(base, tmp_path / "whole", data=str(data), save_every=1)
    parts = tmp_path / "parts"
    go(base, parts, data=str(data), save_every=1)
    manifest = json.loads((parts / "manifest.json").read_text())
    (parts / "manifest.json").write_text(json.dumps({**manifest, "status": "stopped"}))
    for name in ("summary.json", "model/model.safetensors"):
        (parts / name).unlink()
    checkpoints = sorted((parts / "checkpoints").iterdir())
    assert len(checkpoints) == 2
    for file in checkpoints[-1].iterdir():  # the last one is lost
        file.unlink()
    checkpoints[-1].rmdir()
    assert load_latest(parts / "checkpoints")[0] == 2
    _, ran, found = go(base, parts, data=str(data), save_every=1)
    assert ran and found == expected
    assert (parts / "model/model.safetensors").read_bytes() == (whole / "model/model.safetensors").read_bytes()
