"""Bad input of every kind: the message names the file, line, key or value and what to do, and nothing is lost."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tutelage.core.errors import ConfigError, DataError, RewardError, RunError
from tutelage.core.rundir import RunDir
from tutelage.pipeline import run_recipe
from tutelage.pipeline.stages import launch
from tutelage.text.tokenizer import train_tokenizer


def files(folder):
    """Every file's contents, as hashes, but the lock and the manifest's times."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(Path(folder).rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


def values(kind, chain, out):
    given = {
        "tokenizer": {},
        "prepare": {"tokenizer": "tokenizer"},
        "pretrain": {"tokenizer": "tokenizer", "data": "prepare", "model": "preset:laptop-0.3m"},
        "sft": {"model": "pretrain"},
        "rank": {"model": "sft"},
        "reward": {"model": "sft", "data": "rank"},
        "ppo": {"model": "sft", "reward": "reward"},
    }[kind]
    return {k: v if ":" in v else str(chain / v) for k, v in given.items()} | {"out": str(out)}


CONFIG = [
    ("sft", {"stepz": 3}, "unknown key 'stepz'; did you mean 'steps'?"),
    ("sft", {"optimizer": {"lrr": 1}}, "unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'?"),
    ("ppo", {"lora": {"rank": 4}}, "unknown key 'lora.rank'; did you mean 'lora.r'?"),
    ("ppo", {"wobble": 4}, "unknown key 'wobble'; known keys: batch_size, clip, compiled, data, ensemble, ensemble_k"),
    ("sft", {"steps": "many"}, "steps='many': Input should be a valid integer"),
    ("sft", {"steps": 0}, "steps=0: Input should be greater than or equal to 1"),
    ("pretrain", {"optimizer": {"lr": -1.0}}, "optimizer.lr=-1.0: Input should be greater than or equal to 0"),
    ("ppo", {"method": "lorra"}, "method='lorra': Input should be 'full' or 'lora'"),
    ("ppo", {"batch_size": 0}, "batch_size=0: Input should be greater than or equal to 1"),
    ("rank", {"responses": 1}, "responses=1: a ranking needs at least 2 responses per prompt"),
    ("pretrain", {"block_size": 300}, "block_size=300 exceeds max_length of 256; lower block_size"),
    ("tokenizer", {"vocab_size": 20}, "vocab_size: 20, expected at least 262"),
]


@pytest.mark.parametrize(("kind", "wrong", "says"), CONFIG)
def test_a_wrong_key_or_value_is_named_with_the_right_one(chain, tmp_path, kind, wrong, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        launch(kind, {**values(kind, chain, tmp_path / "out"), **wrong})


def test_what_must_be_given_and_what_there_is():
    with pytest.raises(ConfigError, match="ppo: no model=; it must be given; no reward=; it must be given"):
        launch("ppo", {})
    with pytest.raises(ConfigError, match="no stage 'pretrian'; did you mean 'pretrain'. stages: tokenizer, prepare"):
        launch("pretrian", {})


def test_one_key_of_a_table_leaves_the_stage_its_others(chain, tmp_path):
    launch("sft", {**values("sft", chain, tmp_path / "sft"), "rows": 40, "steps": 1, "optimizer": {"lr": 2e-3}})
    config = (tmp_path / "sft/config.toml").read_text()
    assert 'name = "muon"' in config and "lr = 0.002" in config and "muon_lr = 0.003" in config


RECIPES = [
    ('[tokenizer]\n[prepare]\ntokenizer = "@tokeniser"', r"[prepare] tokenizer: '@tokeniser' names no earlier stage; "
     "did you mean '@tokenizer'? earlier: tokenizer"),
    ("[tokenizer]\ndocument = 3", "[tokenizer]: unknown key 'document'; did you mean 'documents'?"),
    ("[tokeniser]", "[tokeniser] is no stage; did you mean 'tokenizer'? Else give stage="),
    ("sed = 1\n[tokenizer]", "'sed' is neither a stage table nor one of: out, seed, compare"),
    ("[tokenizer]\nvocab_size = \n", "not valid TOML: Invalid value (at line 2"),
    ("[tokenizer]\n[compare]\nmodles = {}", "[compare]: unknown key 'modles'; did you mean 'models'?"),
    ('[tokenizer]\n[compare]\nmodels = {base = "pretrain"}', "[compare] models.base='pretrain' is no stage and no mod"),
    ('[tokenizer]\n[compare]\nmodels = {sft = "tokeniser"}', "'tokeniser' is no stage and no model; did you mean 't"),
    ('[tokenizer]\n[compare]\ngold = "nowhere.py:score"', "[compare] gold='nowhere.py': no such file or folder"),
    ('[tokenizer]\ndata = "nowhere.jsonl"', "[tokenizer] data='nowhere.jsonl': no such file or folder"),
    ('[tokenizer]\n[rank]\nmodel = "x"\njudge = "nowhere.py:score"', "[rank] judge='nowhere.py': no such file"),
    ('[tokenizer]\ndata = "${TUTELAGE_NO_SUCH}/x"', "needs the environment variable TUTELAGE_NO_SUCH"),
    ("seed = 1", "no stage; expected at least one table such as [tokenizer]"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "says"), RECIPES)
def test_a_recipe_is_checked_before_its_first_stage(tmp_path, text, says):
    recipe = tmp_path / "r.toml"
    recipe.write_text(text)
    with pytest.raises((ConfigError, DataError), match=re.escape(says)) as error:
        run_recipe(recipe, {"out": str(tmp_path / "out")})
    assert str(error.value).startswith(str(recipe)) and not (tmp_path / "out").exists()


def test_a_recipe_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match="nothing.toml: no such recipe; give the path of a .toml file"):
        run_recipe(tmp_path / "nothing.toml")
    (tmp_path / "b.toml").write_bytes(b"# caf\xe9\n[tokenizer]\n")
    with pytest.raises(ConfigError, match="b.toml:1: not UTF-8"):
        run_recipe(tmp_path / "b.toml")


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


GOOD = json.dumps({"prompt": "hi", "completion": "yes."}) + "\n"
LONG = json.dumps({"prompt": "long " * 400}) + "\n"
DATA = [
    ("sft", "d.jsonl", GOOD + "{broken\n", r"d.jsonl:2: not JSON"),
    ("sft", "d.jsonl", GOOD + '{"prompt": "x"}\n', r"d.jsonl:2: no assistant message; expected at least one answer"),
    ("sft", "d.jsonl", GOOD.encode() + b'{"prompt": "\xe9"}\n', r"d.jsonl:2: not UTF-8 .*expected UTF-8"),
    ("sft", "d.jsonl", "", r"d.jsonl: no rows; expected at least one"),
    ("sft", "d.csv", "a,b", r"d.csv: unknown format, expected one of .txt, .jsonl"),
    ("sft", "d.jsonl", LONG[:-2] + ', "completion": "x"}\n' + GOOD, "no (training|held-out) row has an answer within"),
    ("tokenizer", "d.txt", "", r"d.txt: no text; expected at least one document that is not blank"),
    ("tokenizer", "d.txt", "one line alone", r"d.txt: 1 document\(s\) in one piece: nothing can be held out"),
    ("prepare", "d.txt", "\n \n", r"d.txt: no text"),
    ("prepare", "d.jsonl", '{"text": "a"}\n{"txt": "b"}\n', r"d.jsonl:2: no 'text', expected an object with a string"),
    ("rank", "d.jsonl", '{"question": "x"}\n', r"d.jsonl:1: no 'prompt' .keys: question.; expected {\"prompt\""),
    ("rank", "d.jsonl", '{"prompt": "only"}\n', r"d.jsonl: one prompt alone; a held-out prompt needs at least 2"),
    ("rank", "d.jsonl", '{"prompt": "a"}\n' + LONG,
     r"d.jsonl:2: the prompt has \d+ tokens; with max_tokens=24 it exceeds the model's context of 256: shorten"),
    ("ppo", "d.jsonl", "", r"d.jsonl: no rows"),
    ("ppo", "d.jsonl", '{"prompt": 3}\n', r"d.jsonl:1: 'prompt' is a int; expected {\"prompt\""),
    ("ppo", "d.jsonl", LONG, r"d.jsonl:1: the prompt has \d+ tokens"),
    ("reward", "d.jsonl", "", r"d.jsonl: no rows"),
    ("reward", "d.jsonl", '{"prompt": "a", "responses": ["b"], "ranking": [[0]]}\n', r"d.jsonl:1: .*at least 2"),
    ("reward", "d.jsonl", '{"prompt": "a", "responses": ["b", "c"], "ranking": [[0]]}\n', r"d.jsonl:1: .*each of 0..1"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "text", "says"), DATA)
def test_bad_data_is_named_by_file_and_line(chain, tmp_path, kind, name, text, says):
    data = write(tmp_path / name, text)
    given = {**values(kind, chain, tmp_path / "out"), "data": str(data)}
    given |= {"judge": f"{JUDGES}:fine"} if kind == "rank" else {"reward": "logprob"} if kind == "ppo" else {}
    before = files(chain)
    with pytest.raises(DataError, match=says):
        launch(kind, given)
    assert files(chain) == before
    assert json.loads((tmp_path / "out/manifest.json").read_text())["status"] == "failed"


def test_bad_rows_may_be_skipped_and_are_listed(chain, tmp_path):
    data = write(tmp_path / "d.jsonl", '{"prompt": "a"}\n{bad\n' + LONG + '{"prompt": "b"}\n')
    given = {**values("rank", chain, tmp_path / "out"), "data": str(data), "judge": f"{JUDGES}:fine"}
    launch("rank", {**given, "on_bad_row": "skip", "max_tokens": 4})
    bad = json.loads((tmp_path / "out/manifest.json").read_text())["bad_rows"]
    assert bad["count"] == 2 and "d.jsonl:2: not JSON" in bad["first"][0] and "d.jsonl:3: the prompt" in bad["first"][1]


JUDGES = Path(__file__).with_name("judges.py")
FUNCTIONS = [
    ("raises", r"'raises' .*judges.py:\d+\) raised ZeroDivisionError: division by zero in line \d+ \(row 1 of \d+:"),
    ("nan", r"'nan' .* returned nan for completion .*; expected a finite number"),
    ("few", r"'few' .* returned 1 scores for \d+ completions; expected a number for each"),
    ("text", r"'text' .* returned the text 'good' for \d+ completions"),
    ("words", r"'words' .* returned 'good' for completion .*; expected a finite number"),
    ("nothing", r"'nothing' .* raised TypeError: 'NoneType' object is not iterable"),
    ("narrow", r"'narrow' .* raised TypeError: .*'item'.*; it must take \(prompts, completions, \*\*columns\)"),
    ("absent", r"judges.py: has no function 'absent'; it has: fine, raises, nan"),
]


@pytest.mark.parametrize(("name", "says"), FUNCTIONS)
@pytest.mark.parametrize("kind", ["rank", "ppo"])
def test_a_reward_function_that_fails_is_named_with_its_line(chain, tmp_path, kind, name, says):
    small = {"prompts": 8, "max_tokens": 4} | ({"held_out": 4} if kind == "rank" else {"batch_size": 4, "updates": 1})
    given = {**values(kind, chain, tmp_path / "out"), **small}
    given["judge" if kind == "rank" else "reward"] = f"{JUDGES}:{name}"
    before = files(chain)
    with pytest.raises(RewardError, match=says):
        launch(kind, given)
    assert files(chain) == before and not (tmp_path / "out/rankings.jsonl").exists()


def test_a_judge_that_is_not_there_or_cannot_be_loaded(chain, tmp_path):
    given = values("rank", chain, tmp_path / "out")
    with pytest.raises(RewardError, match="nowhere.py: no such file"):
        launch("rank", {**given, "judge": "nowhere.py:score"})
    for text, says in (
        ("def f(:\n", r"broken.py:1: cannot be loaded \(SyntaxError"),
        ("\nimport no_such_thing\n", r"broken.py:2: cannot be loaded \(ModuleNotFoundError: No module named 'no_such"),
        ("x = 1\n\n1 / 0\n", r"broken.py:3: cannot be loaded \(ZeroDivisionError"),
    ):
        with pytest.raises(RewardError, match=says):
            launch("rank", {**given, "judge": f"{write(tmp_path / 'broken.py', text)}:score"})
    with pytest.raises(ConfigError, match="judge=annotators needs data=schoolroom.*give judge=file.py:function"):
        launch("rank", {**given, "data": str(write(tmp_path / "p.jsonl", '{"prompt": "a"}\n{"prompt": "b"}\n'))})


def test_tokenizers_that_are_none_or_another(chain, tmp_path):
    given = values("prepare", chain, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty'?: .*expected a folder with a tokenizer.json"):
        launch("prepare", {**given, "tokenizer": str(tmp_path / "empty")})
    with pytest.raises(DataError, match=r"nowhere': no such folder; expected a folder with a tokenizer.json"):
        launch("prepare", {**given, "tokenizer": str(tmp_path / "nowhere")})
    (tmp_path / "broken").mkdir()
    write(tmp_path / "broken/tokenizer.json", "{")
    with pytest.raises(DataError, match=r"broken': cannot be read"):
        launch("prepare", {**given, "tokenizer": str(tmp_path / "broken")})
    train_tokenizer(["other words entirely"] * 9, 300).save_pretrained(tmp_path / "other")
    with pytest.raises(DataError, match=r"prepare/train: made with another tokenizer .*; prepare the data again"):
        launch("pretrain", {**values("pretrain", chain, tmp_path / "out"), "tokenizer": str(tmp_path / "other")})


def copied(chain, tmp_path, name):
    """A run directory's model as a folder of its own, with its file of weights."""
    import shutil

    shutil.copytree(chain / name / "model", tmp_path / name / "model")
    return tmp_path / name, tmp_path / name / "model/model.safetensors"


@pytest.mark.parametrize(
    ("kind", "key", "name"), [("sft", "model", "pretrain"), ("ppo", "model", "sft"), ("ppo", "reward", "reward")]
)
def test_weights_cut_short_are_named(chain, tmp_path, kind, key, name):
    folder, file = copied(chain, tmp_path, name)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=rf"{name}/model/model.safetensors: damaged or cut short .*; write or copy it"):
        launch(kind, {**values(kind, chain, tmp_path / "out"), key: str(folder)})


def test_a_model_that_is_none_or_of_another_kind(chain, tmp_path):
    given = values("sft", chain, tmp_path / "out")
    with pytest.raises(DataError, match="no model in '.*prepare': neither it nor its model/ holds a config.json"):
        launch("sft", {**given, "model": str(chain / "prepare")})
    with pytest.raises(DataError, match="holds Qwen3ForCausalLM, not a reward model"):
        launch("ppo", {**values("ppo", chain, tmp_path / "out"), "reward": str(chain / "sft")})


def test_an_input_that_is_not_finished_is_refused(chain, tmp_path):
    run = RunDir(tmp_path / "prepare", "prepare", {})
    run.open()
    run.fail(ValueError("x"), "stopped")
    run.close()
    with pytest.raises(RunError, match="data=.*prepare: that run is not finished .it is stopped.; run its"):
        launch("pretrain", {**values("pretrain", chain, tmp_path / "out"), "data": str(tmp_path / "prepare")})


def test_gradients_that_are_not_finite_end_ppo_with_everything_kept(chain, tmp_path):
    given = {**values("ppo", chain, tmp_path / "out"), "prompts": 16, "batch_size": 8, "minibatches": 2}
    given |= {"reward": f"{JUDGES}:explodes", "updates": 9, "save_every": 1, "precision": "fp32", "max_tokens": 4}
    says = r"out: no gradient of update 3 was finite; lower the learning rate \(optimizer.lr=0.0005\) or the reward"
    with pytest.raises(RunError, match=says):
        launch("ppo", given)
    kept = sorted(p.name for p in (tmp_path / "out/checkpoints").iterdir())
    assert kept == ["step-1", "step-2"]
    state = load_file(tmp_path / "out/checkpoints/step-2/state.safetensors")
    assert all(torch.isfinite(t).all() for t in state.values())


def test_checkpoints_cut_short_are_passed_over_and_replaced(chain, tmp_path, capfd):
    given = {**values("sft", chain, tmp_path / "out"), "rows": 40, "held_rows": 8, "steps": 6, "save_every": 2}
    whole, _ = launch("sft", {**given, "out": str(tmp_path / "whole")})

    from tutelage.stages import sft

    real = sft.save_model
    sft.save_model = lambda *_: 1 / 0
    try:
        with pytest.raises(ZeroDivisionError):
            launch("sft", given)
    finally:
        sft.save_model = real
    file = tmp_path / "out/checkpoints/step-6/state.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    capfd.readouterr()
    launch("sft", given)
    assert "step-6: damaged checkpoint passed over" in capfd.readouterr().err
    for name in ("model/model.safetensors", "checkpoints/step-6/state.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes()


ERRORS = [
    (["sft", "model=x", "stepz=3"], "sft: unknown key 'stepz'; did you mean 'steps'?"),
    (["sft", "model=x", "step"], "'step': expected key=value, e.g. tutelage sft model=runs/base"),
    (["run", "no.toml"], "no.toml: no such recipe; give the path of a .toml file"),
    (["run", "bad.toml"], "bad.toml: not valid TOML: Invalid value (at line 2, column 9)"),
    (["sft", "model=nowhere/at/all", "out=out"], "no model in 'nowhere/at/all': neither it nor its model/ holds"),
    (["tokenizer", "data=bad.jsonl", "out=out"], "bad.jsonl:2: not JSON (Expecting property name"),
    (["tokenizer", "out=thesis"], "thesis: holds chapter.txt and is no run directory; choose another out="),
    (["run", "good.toml", "out=thesis"], "thesis: holds chapter.txt and is no pipeline run; choose another out="),
    (["tokenizer", "out=/proc/x"], "/proc/x: cannot be used as a run directory (No such file or directory)"),
    (["sft", "model=x", "restart=maybe"], "restart='maybe': expected true or false"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "says"), ERRORS)
def test_on_the_command_line_an_error_is_one_line_and_exit_code_1(command, tmp_path, words, says):
    write(tmp_path / "bad.toml", "[sft]\nsteps = \n")
    write(tmp_path / "good.toml", "[tokenizer]\n")
    write(tmp_path / "bad.jsonl", '{"text": "a"}\n{bad}\n')
    (tmp_path / "thesis").mkdir()
    write(tmp_path / "thesis/chapter.txt", "dear")
    process = command(*words)
    assert process.wait() == 1
    lines = process.err.read_text().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and says in lines[0], process.text()
    assert (tmp_path / "thesis/chapter.txt").read_text() == "dear" and process.out.read_text() == ""


def test_a_directory_in_use_by_another_process_and_a_finished_one(command, tmp_path):
    line = ["tokenizer", "documents=1000000", "out=busy"]
    first = command(*line)
    first.begins(tmp_path / "busy")
    second = command(*line)
    assert second.wait() == 1
    assert "error: busy: in use by another process; wait for it or choose another out=" in second.text()
    first.kill()
    small = ["tokenizer", "documents=200", "vocab_size=400", "out=done"]
    assert command(*small).wait() == 0
    before = files(tmp_path / "done")
    again = command(*small)
    assert again.wait() == 0 and "already finished: done" in again.text() and files(tmp_path / "done") == before
    other = command(*small[:2], "vocab_size=300", "out=done")
    assert other.wait() == 1 and files(tmp_path / "done") == before
    assert "done: holds a tokenizer run with another configuration or other inputs; choose another out=, or give " in (
        other.text()
    )
    moved = command(*small[:2], "vocab_size=300", "out=done", "restart=true")
    assert moved.wait() == 0, moved.text()
    assert files(next(tmp_path.glob("done.old-*"))) == before


def test_a_prompt_longer_than_the_context_for_generate(command, chain):
    process = command("generate", chain / "sft", "prompt=" + "long " * 400)
    assert process.wait() == 1
    assert re.search(r"error: the prompt has \d+ tokens and the model's context is 256", process.text())


def test_as_a_user_starts_it(tmp_path):
    """Once for real, a fresh interpreter and all."""
    line = [sys.executable, "-m", "tutelage.cli", "ppo", "model=a", "reward=b", "update=3"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == "error: ppo: unknown key 'update'; did you mean 'updates'?\n"


def test_nothing_of_a_wrong_adapter_is_taken(chain, tmp_path):
    """A reward model of method=lora whose adapter file is damaged."""
    folder, _ = copied(chain, tmp_path, "reward")
    save_file({"x": torch.zeros(1000)}, folder / "model/adapter.safetensors")
    file = folder / "model/adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DataError, match="adapter.safetensors: damaged or cut short"):
        launch("ppo", {**values("ppo", chain, tmp_path / "out"), "reward": str(folder), "method": "lora"})
