"""report.html, the table of stages and the tree of runs, on run directories made by hand."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from tutelage.core.errors import RunError
from tutelage.report import runs_tree, stage_table, write_report
from tutelage.report.plots import gold_against_kl
from tutelage.report.read import StageRun, metrics_text, number_text, read_rows, time_text


def make_stage(path: Path, kind: str, rows=(), parents=(), fingerprint: str = "", started: str = "1") -> Path:
    path.mkdir(parents=True)
    manifest = {
        "kind": kind,
        "status": "finished",
        "fingerprint": fingerprint or f"hash-{path.name}",
        "seed": 3,
        "argv": ["tutelage", kind],
        "versions": {"torch": "2"},
        "started": started,
        "updated": "2",
        "parents": [{"name": p.name, "path": str(p), "hash": f"hash-{p.name}"} for p in parents],
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def make_run(root: Path) -> Path:
    run = root / "demo"
    loss = [{"step": i, "loss": 3 / (i + 1), "tokens_per_second": 9.0} for i in range(80)] + [
        {"step": 80, "val_loss": 1.0}
    ]
    pretrain = make_stage(run / "pretrain", "pretrain", loss, started="1")
    sft = make_stage(run / "sft", "sft", loss, [pretrain], started="2")
    reward = make_stage(run / "reward", "reward", [{"step": 1, "loss": 0.6, "val_accuracy": 0.8}], [sft], started="3")
    ppo = [
        {"step": i, "proxy": 0.1 * i, "gold": 0.5, "kl": 0.1 * i - 0.05, "entropy": 1, "beta": 0.05} for i in range(9)
    ]
    make_stage(run / "ppo", "ppo", ppo, [sft, reward], started="4")
    summary = {
        "stages": [
            {"name": n, "kind": n, "seconds": 61.0, "status": "finished", "metrics": {"gold": 0.5}}
            for n in ("pretrain", "sft", "reward", "ppo")
        ],
        "results": {"ppo_gold": 0.8251, "tokens": 1234567},
        "answers": [
            {"prompt": "<script>alert(1)</script>", "base": "a & b", "sft": "x", "rlhf": "y", "gold_answer": "z"}
        ],
    }
    (run / "summary.json").write_text(json.dumps(summary))
    return run


def show(thing) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))
    console.print(thing)
    return console.export_text()


def test_report_is_one_page_without_outside_addresses(tmp_path):
    page = write_report(make_run(tmp_path))
    text = page.read_text(encoding="utf-8")
    assert page.name == "report.html" and text.count("data:image/png;base64,") == 3
    assert not re.search(r"https?://", text)
    assert "<script>" not in text and "&lt;script&gt;alert(1)" in text and "a &amp; b" in text
    for part in ("Stages", "0.8251", "1,234,567", "right answer", "Lineage", "sft (hash-sft)", "1 min 01 s"):
        assert part in text
    assert [p.name for p in page.parent.glob(".report*")] == []


def test_absent_stages_and_damaged_files_are_left_out(tmp_path):
    run = tmp_path / "cut"
    make_stage(run / "pretrain", "pretrain", [{"step": 1, "loss": 2.0}])
    with (run / "pretrain" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    (run / "pretrain" / "summary.json").write_text("{")
    text = write_report(run).read_text()
    assert "PPO" not in text and "The same prompts" not in text and text.count("data:image") == 1


def test_nothing_to_report_is_an_error(tmp_path):
    with pytest.raises(RunError, match="nothing to report"):
        write_report(tmp_path)
    with pytest.raises(RunError, match="no such run"):
        write_report(tmp_path / "absent")


def test_series_skips_what_is_no_number_and_keeps_the_later_row():
    stage = StageRun(
        "p",
        Path("p"),
        "ppo",
        rows=[
            {"step": 1, "gold": float("nan")},
            {"step": 2, "gold": 0.1},
            {"step": 2, "gold": 0.2},
            {"gold": 1},
            {"step": 0, "gold": True},
            {"step": 0, "gold": 0.0},
        ],
    )
    assert stage.series("gold") == ([0.0, 2.0], [0.0, 0.2])


def test_gold_is_drawn_against_the_root_of_kl_and_negative_estimates_count_as_zero():
    stage = StageRun(
        "p", Path("p"), "ppo", rows=[{"step": 0, "kl": -0.01, "gold": 0.5}, {"step": 1, "kl": 4.0, "gold": 0.9}]
    )
    panel = gold_against_kl(stage)
    assert panel is not None and panel.lines == [("gold", [0.0, 2.0], [0.5, 0.9])]


def test_rows_are_cut_at_line_feeds_only(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"step": 1, "text": "a\u2028b"}\n[1]\n{"st', encoding="utf-8")
    assert read_rows(tmp_path / "m.jsonl") == [{"step": 1, "text": "a\u2028b"}]


@pytest.mark.parametrize(
    "seconds, text",
    [(4.25, "4.2 s"), (59.99, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min"), (None, ""), (float("nan"), "")],
)
def test_time_text(seconds, text):
    assert time_text(seconds) == text


def test_number_text():
    assert [number_text(v) for v in (0.12345, 12345, 12345.6, 250.04, True, None, "a")] == [
        "0.1235",
        "12,345",
        "12,346",
        "250.0",
        "yes",
        "",
        "a",
    ]


def test_stage_table_shows_markup_as_text_and_a_total():
    text = show(
        stage_table(
            {
                "stages": [
                    {"name": "sft [red]", "seconds": 30, "status": "skipped", "metrics": {"gold": 0.5}},
                    {"name": "ppo", "seconds": 40},
                ]
            }
        )
    )
    assert "sft [red]" in text and "gold 0.5" in text and "1 min 10 s" in text
    assert "total" not in show(stage_table({}))


def test_runs_tree_draws_lineage(tmp_path):
    run = make_run(tmp_path)
    (run / "sft" / "checkpoints" / "x").mkdir(parents=True)
    (run / "sft" / "checkpoints" / "x" / "manifest.json").write_text('{"kind": "hidden"}')
    text = show(runs_tree(tmp_path))
    depth = {
        name: text.splitlines()[i].index(f"demo/{name} ")
        for i, name in enumerate(("pretrain", "sft", "reward", "ppo"), 1)
    }
    assert depth["pretrain"] < depth["sft"] < depth["reward"] < depth["ppo"]
    assert "also from demo/sft" in text and "hidden" not in text


def test_runs_tree_survives_a_circle_and_a_moved_parent(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    make_stage(a, "sft", parents=[b])
    make_stage(b, "sft", parents=[a])
    a.rename(tmp_path / "c")
    text = show(runs_tree(tmp_path))
    assert text.count("finished") == 2
    with pytest.raises(RunError):
        runs_tree(tmp_path / "absent")


def test_report_imports_no_torch():
    code = "import sys, tutelage.report; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_runs_started_in_the_same_second_keep_their_lineage(tmp_path):
    shards = make_stage(tmp_path / "z-shards", "prepare")
    base = make_stage(tmp_path / "y-base", "pretrain", parents=[shards])
    make_stage(tmp_path / "a-sft", "sft", parents=[shards, base])
    lines = show(runs_tree(tmp_path)).splitlines()
    indent = {
        name: line.index(name) for line in lines for name in ("z-shards  ", "y-base  ", "a-sft  ") if name in line
    }
    assert indent["z-shards  "] < indent["y-base  "] < indent["a-sft  "]


def test_a_run_folder_may_be_called_model_or_checkpoints(tmp_path):
    make_stage(tmp_path / "model" / "checkpoints", "sft")
    assert "model/checkpoints" in show(runs_tree(tmp_path))


def test_scores_become_a_grid_and_other_results_a_list(tmp_path):
    run = make_run(tmp_path)
    results = {"sft_gold_sampled": 0.511, "sft_correct_t0.3": 0.622, "rlhf_gold_sampled": 0.933, "final_kl": 1.9}
    (run / "summary.json").write_text(json.dumps({"stages": [], "results": results}))
    text = write_report(run).read_text()
    assert "<th>gold, sampled, T=1</th><th>correct, T=0.3</th>" in text
    assert "<td>SFT</td><td>0.511</td><td>0.622</td>" in text and "<td>RLHF</td><td>0.933</td><td></td>" in text
    assert "<th>final_kl</th><td>1.9</td>" in text


def test_several_ppo_runs_are_compared(tmp_path):
    run = make_run(tmp_path)
    make_stage(run / "ppo-plain", "ppo", [{"step": 1, "gold": 0.4, "kl": 1.0}], started="5")
    assert "PPO runs compared" in write_report(run).read_text()


def test_main_numbers_come_first_in_the_table():
    metrics = {f"extra{i}": i for i in range(9)} | {"right_over_wrong": 0.9, "curve": [1, 2]}
    text = metrics_text(metrics)
    assert text.startswith("right_over_wrong 0.9, extra0 0") and "curve" not in text


def test_bounds_are_shown_beside_their_value():
    metrics = {"accuracy": 0.8, "accuracy_low": 0.7, "accuracy_high": 0.9, "pairs": 12}
    assert metrics_text(metrics) == "accuracy 0.8 (0.7 to 0.9), pairs 12"


@pytest.mark.filterwarnings("error")
def test_stage_names_may_hold_any_text(tmp_path):
    make_stage(tmp_path / "预训练 $x_", "pretrain", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}])
    assert "预训练 $x_" in write_report(tmp_path).read_text(encoding="utf-8")


def test_report_of_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    run = make_run(tmp_path)
    (run / "report.html").mkdir()
    with pytest.raises(RunError, match="cannot write"):
        write_report(run)
    assert list(run.glob(".report*")) == []
