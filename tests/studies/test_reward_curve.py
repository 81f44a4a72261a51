"""The learning curve of reward models: nested subsets, cells kept when the command is given again, people beside."""

import json

import pytest

from tutelage.core.errors import ConfigError
from tutelage.pipeline.stages import launch, read_summary
from tutelage.report.sheets import console_tables
from tutelage.schoolroom import World
from tutelage.schoolroom.annotators import panel
from tutelage.schoolroom.rows import ranking_rows
from tutelage.studies.reward_curve import averaged, curve_panels, measure

SMALL = {
    "models": ["preset:laptop-0.3m"], "prompts": [4, 8], "held_rows": 6, "people": 3, "documents": 200,
    "text_steps": 2, "sft_steps": 2, "min_steps": 2, "passes": 1.0, "batch_size": 4, "seeds": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("curve") / "study"
    path, ran = launch("reward_curve", {**SMALL, "out": str(out)})
    assert ran
    return path


def test_every_cell_is_trained_on_a_part_of_the_next_and_measured_beside_people(study):
    found = read_summary(study)
    assert [(c["prompts"], c["seed"]) for c in found["cells"]] == [(4, 0), (8, 0), (4, 1), (8, 1)]
    assert found["measure"] == "model_agreement" and 0 <= found["laptop-0.3m"] <= 1
    assert 0.5 < found["people_agreement"] < found["truth_agreement"] <= 1
    assert found["laptop-0.3m_below_people"] == pytest.approx(found["people_agreement"] - found["laptop-0.3m"])
    for cell in found["cells"]:
        summary = read_summary(study / cell["run"])
        assert summary["train_prompts"] == cell["prompts"] and summary["people_agreement"] == found["people_agreement"]
    assert (study / "figures" / "study.png").is_file()
    orders = [[json.loads(line)["prompt"] for line in (study / f"rankings-{s}.jsonl").open()] for s in range(2)]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])
    assert [c["comparisons"] for c in found["cells"][:2]] == sorted(c["comparisons"] for c in found["cells"][:2])


def test_the_same_command_keeps_its_finished_cells(study):
    before = read_summary(study)
    marks = {p: p.stat().st_mtime_ns for p in study.glob("*/model/model.safetensors")}
    manifest = json.loads((study / "manifest.json").read_text())
    (study / "manifest.json").write_text(json.dumps({**manifest, "status": "stopped"}))
    launch("reward_curve", {**SMALL, "out": str(study)})
    assert read_summary(study) == before
    assert {p: p.stat().st_mtime_ns for p in study.glob("*/model/model.safetensors")} == marks and len(marks) == 6


def test_the_curve_is_a_table_in_the_terminal(study):
    (table,) = console_tables(study)
    assert table.row_count == 4 + 2  # cells, people, truth


def test_curves_average_over_seeds_and_keep_the_widest_bounds():
    cells = [
        {"model": m, "parameters": p, "prompts": n, "comparisons": 6 * n, "seed": s, "accuracy": a,
         "accuracy_low": a - 0.1, "accuracy_high": a + 0.1}
        for m, p, base in (("s", 10**6, 0.5), ("l", 4 * 10**6, 0.6)) for n in (10, 100) for s, a in
        ((0, base + n / 1000), (1, base + n / 1000 + 0.1))
    ]  # fmt: skip
    assert measure(cells) == "accuracy"
    assert averaged(cells, "l", 100) == pytest.approx((0.75, 0.6, 0.9)) and averaged(cells, "x", 100) is None
    first, second = curve_panels(cells, {"people": {"agreement": 0.8, "agreement_low": 0.7, "agreement_high": None}})
    assert [label for label, _, _ in first.lines] == ["s", "l", "one person with another"]
    assert first.lines[0][1] == [60, 600] and second.lines[0][1] == [1.0, 4.0]
    assert second.lines[1][2] == pytest.approx([0.65, 0.75]) and len(second.bands) == len(second.lines)


def test_simulated_people_take_turns_or_all_rank_the_same_answers():
    people = panel(3)
    world = World(families="demo")
    alone = list(ranking_rows(world, 6, "train", people))
    assert [row["annotator"] for row in alone] == [i % 3 for i in range(6)]
    every = list(ranking_rows(world, 4, "heldout", people, each=3))
    assert [row["annotator"] for row in every] == [(i + k) % 3 for i in range(4) for k in range(3)]
    assert all(every[3 * i]["responses"] == every[3 * i + k]["responses"] for i in range(4) for k in range(3))
    assert all(2 <= len(set(row["responses"])) == len(row["responses"]) <= 4 for row in alone)


def test_presets_need_the_world():
    with pytest.raises(ConfigError, match="of your own"):
        launch("reward_curve", {"data": "pairs.jsonl", "out": "never"})
