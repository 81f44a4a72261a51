import subprocess
import sys

import pytest

from tutelage.core.config import StageConfig, build, merge, parse_words
from tutelage.core.errors import ConfigError, RunError
from tutelage.core.rundir import RunDir, read_manifest
from tutelage.core.stats import calibration_error, kendall_tau, wilson


class Demo(StageConfig):
    steps: int = 3
    lr: float = 0.1


def test_misspelt_key_names_the_nearest():
    with pytest.raises(ConfigError, match="'step'.*did you mean 'steps'"):
        build(Demo, {"step": 4})
    with pytest.raises(ConfigError, match="steps='many'"):
        build(Demo, {"steps": "many"})


def test_words_nest_and_merge():
    assert parse_words(["a.b=3", "a.c=x/y", "d=[1, 2]"]) == {"a": {"b": 3, "c": "x/y"}, "d": [1, 2]}
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}
    with pytest.raises(ConfigError, match="key=value"):
        parse_words(["oops"])


def test_run_directory_life(tmp_path):
    run = RunDir(tmp_path / "r", "demo", {"steps": 3, "seed": 0})
    assert run.open() == "fresh"
    with pytest.raises(RunError, match="in use"):
        RunDir(tmp_path / "r", "demo", {"steps": 3, "seed": 0}).open()
    run.log({"step": 1})
    run.log({"step": 2})
    run.truncate_metrics(1)
    assert (tmp_path / "r/metrics.jsonl").read_text() == '{"step": 1}\n'
    run.close()
    assert run.open() == "resume"
    run.finish({"ok": 1})
    assert RunDir(tmp_path / "r", "demo", {"steps": 3, "seed": 0}).open() == "finished"
    other = RunDir(tmp_path / "r", "demo", {"steps": 4, "seed": 0})
    with pytest.raises(RunError, match="another configuration"):
        other.open()
    other.close()
    assert other.open(restart=True) == "fresh"
    assert read_manifest(next(tmp_path.glob("r.old-*")))["status"] == "finished"


def test_foreign_directory_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="holds thesis.txt and is no run directory; choose another out="):
        RunDir(tmp_path, "demo", {}).open()


def test_statistics():
    low, high = wilson(50, 100)
    assert 0.40 < low < 0.41 and 0.59 < high < 0.60
    assert kendall_tau([1, 2, 3], [1, 2, 3]) == 1 and kendall_tau([1, 2, 3], [3, 2, 1]) == -1
    assert kendall_tau([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / (2 * 3) ** 0.5)
    assert calibration_error([0.75] * 4, [1, 1, 1, 0]) == 0


def test_import_is_light():
    code = "import sys, tutelage; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
