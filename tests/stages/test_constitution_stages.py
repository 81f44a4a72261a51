"""Constitutional AI's stages: rows that `sft`, `reward` and `ppo` take, killed and resumed to equal rows."""

import json
from pathlib import Path

import pytest

from tutelage.core.errors import ConfigError, DataError
from tutelage.feedback import revision
from tutelage.pipeline.stages import launch, read_summary
from tutelage.report.conduct import conduct_panels
from tutelage.report.html import write_report
from tutelage.report.read import read_stages
from tutelage.schoolroom import World
from tutelage.stages import constitution as stage
from tutelage.stages import feedback as feedback_stage
from tutelage.train.conduct import by_phrases, by_world, declines, rates, summarise
from tutelage.train.sources import prompts

SMALL = {"constitution": "schoolroom", "max_tokens": 6, "batch": 4}
REVISE = {**SMALL, "prompts": 10, "rounds": 2, "critique_tokens": 6, "helpful": "schoolroom:charter:helpful",
          "helpful_prompts": 6, "measure": 5}  # fmt: skip


class Dies(BaseException):
    """Stands for SIGKILL."""


def rows(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture(scope="module")
def cai(chain, tmp_path_factory):
    """Finished runs of every stage, in one folder, as a recipe leaves them."""
    out = tmp_path_factory.mktemp("cai") / "run"
    model = str(chain / "sft")

    def run(kind, name, **values):
        launch(kind, {"model": model, **values, "out": str(out / name)})

    run("constitution", "constitution", **REVISE)
    run("sft", "sl", data=str(out / "constitution"), steps=2, batch_size=4, precision="fp32")
    sl = {"model": str(out / "sl")}
    run("feedback", "feedback", **sl, **SMALL, judge=model, prompts=9, held_out=5, mix=str(chain / "rank"))
    run("reward", "reward", **sl, data=str(out / "feedback"), steps=2, batch_size=4, precision="fp32")
    run("ppo", "rl", **sl, reward=str(out / "reward"), data="schoolroom:charter:talk", prompts=20, updates=2,
        batch_size=8, minibatches=2, max_tokens=6, precision="fp32")  # fmt: skip
    run("conduct", "after", model=str(out / "rl"), prompts=8, max_tokens=6)
    return out


def test_revisions_become_rows_for_sft(cai):
    made, helped, sft = (rows(cai / f"constitution/{name}.jsonl") for name in ("revisions", "helpful", "sft"))
    assert len(made) == 10 and all(len(row["rounds"]) == 2 for row in made)
    assert len(helped) == 6 and all(len(row["answers"]) == 2 for row in helped)
    revised = [row for row in sft if "round" in row]
    texts = [m["revision"] for row in made for m in row["rounds"] if m["revision"]]
    assert [row["completion"] for row in revised] == texts
    assert [r["completion"] for r in sft if "round" not in r] == [t for r in helped for t in r["answers"] if t]
    assert read_summary(cai / "sl")["rows"] > 0


def test_every_round_is_measured_on_held_out_prompts_with_intervals(cai):
    found = rows(cai / "constitution/metrics.jsonl")
    assert [row["step"] for row in found] == [0, 1, 2]
    for row in found:
        assert row["harmful_n"] == row["helpful_n"] == 5
        assert 0 <= row["harmful_low"] <= row["harmful"] <= row["harmful_high"] <= 1
        assert {"helpful_low", "over_refusal"} <= set(row)
    trained = {row["prompt"] for row in rows(cai / "constitution/revisions.jsonl")}
    assert not trained & {row["prompt"] for row in rows(cai / "constitution/measured.jsonl") if row["harmful"]}


def test_labels_are_mixed_with_peoples_comparisons(cai, chain):
    found = rows(cai / "feedback/rankings.jsonl")
    labels = [row for row in found if "chosen" in row]
    assert labels and all(0.5 <= row["p_chosen"] <= 1 and row["principles"] for row in labels)
    assert [row["responses"] for row in found if "responses" in row]
    assert len(found) - len(labels) == len(rows(chain / "rank/rankings.jsonl"))
    summary = read_summary(cai / "feedback")
    assert summary["labels"] == len(labels) and -1 <= summary["position_bias"] <= 1
    assert read_summary(cai / "reward")["train_prompts"] == len(found)


def test_every_rl_step_logs_conduct_and_the_report_draws_it(cai):
    steps = rows(cai / "rl/metrics.jsonl")
    assert len(steps) == 2 and {"harmful", "helpful", "over_refusal"} <= set().union(*steps)  # as a batch has them
    summary = read_summary(cai / "after")
    assert summary["harmful_n"] == summary["helpful_n"] == 8 and len(rows(cai / "after/answers.jsonl")) == 16
    panels = conduct_panels(read_stages(cai))
    assert [p.title for p in panels] == [
        "constitution: after each revision", "rl: answers", "harmlessness against helpfulness"
    ]  # fmt: skip
    assert {label for label, *_ in panels[-1].lines} == {"constitution", "rl", "after"}
    assert "<h3>Conduct" in write_report(cai).read_text() or "Conduct" in (cai / "report.html").read_text()


@pytest.mark.parametrize("at", [1, 2, 4])
def test_a_run_that_dies_goes_on_to_equal_rows(cai, chain, tmp_path, monkeypatch, at):
    real, calls = stage.revise_rows, []

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            raise Dies
        return real(*args, **kwargs)

    values = {"model": str(chain / "sft"), **REVISE, "out": str(tmp_path / "again")}
    with monkeypatch.context() as patch:
        patch.setattr(stage, "revise_rows", dying)
        with pytest.raises(Dies):
            launch("constitution", values)
    if at == 2:  # half a line, as a full disk or a kill leaves it
        with (tmp_path / "again/revisions.jsonl").open("a") as file:
            file.write('{"index": 4, "pro')
    launch("constitution", values)
    for name in ("revisions", "helpful", "measured", "sft", "metrics"):
        assert rows(tmp_path / f"again/{name}.jsonl") == rows(cai / f"constitution/{name}.jsonl"), name


def test_labels_that_die_go_on_to_equal_rows(cai, chain, tmp_path, monkeypatch):
    real, calls = feedback_stage.label_pairs, []

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise Dies
        return real(*args, **kwargs)

    values = {**SMALL, "model": str(cai / "sl"), "judge": str(chain / "sft"), "prompts": 9, "held_out": 5,
              "mix": str(chain / "rank"), "out": str(tmp_path / "again")}  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(feedback_stage, "label_pairs", dying)
        with pytest.raises(Dies):
            launch("feedback", values)
    launch("feedback", values)
    for name in ("labels", "heldout_labels", "rankings", "heldout"):
        assert rows(tmp_path / f"again/{name}.jsonl") == rows(cai / f"feedback/{name}.jsonl"), name


def test_labels_after_a_chain_of_thought_are_clamped(chain, tmp_path):
    values = {"model": str(chain / "sft"), **SMALL, "label": "reasoning", "reason_tokens": 8, "principles": 2}
    launch("feedback", {**values, "prompts": 4, "held_out": 3, "out": str(tmp_path / "f")})
    found = [row for row in rows(tmp_path / "f/labels.jsonl") if "p_first" in row]
    assert found and all(0.4 <= row["p_first"] <= 0.6 and len(row["reasoning"]) == 4 for row in found)


def test_what_cannot_be_done_says_so(chain, tmp_path):
    values = {"model": str(chain / "sft"), "out": str(tmp_path / "x")}
    with pytest.raises(ConfigError, match="expected \\[low, high\\]"):
        launch("feedback", {**values, "clamp": [0.6, 0.9]})
    long = tmp_path / "long.jsonl"
    long.write_text("".join(json.dumps({"prompt": f"{i} " + "word " * 600}) + "\n" for i in range(4)))
    with pytest.raises(DataError, match="no prompt came through"):
        launch("constitution", {**values, "data": str(long), "out": str(tmp_path / "y")})
    red = tmp_path / "red.jsonl"
    red.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    with pytest.raises(ConfigError, match="judge=world"):
        given = {"data": str(red), "helpful": str(red), "judge": "world"}
        launch("conduct", {**values, **given, "out": str(tmp_path / "z")})


def test_conduct_of_the_world_and_of_phrases():
    world = World(families="charter")
    item_rows = prompts("schoolroom:charter:harm", "heldout", 20, 1)
    item_rows += prompts("schoolroom:charter:helpful", "train", 40, 1)
    good = [row["item"]["good"] for row in item_rows]
    told = summarise(by_world(item_rows, good))
    assert (told["harmful"], told["helpful"], told["over_refusal"]) == (0.0, 1.0, 0.0)
    served = [row["item"]["meta"]["wrong"][0] for row in item_rows]
    told = summarise(by_world(item_rows, served))
    assert told["harmful"] == 1.0 and told["helpful"] < 0.2
    refused = summarise(by_world(item_rows, ["sorry, i cannot help with that. it is theft."] * len(item_rows)))
    assert (refused["harmful"], refused["helpful"]) == (0.0, 0.0)
    assert refused["over_refusal"] == refused["over_refusal_alike"] == 1.0
    plain = [{"prompt": "a", "harmful": True}, {"prompt": "b", "harmful": False}]
    assert by_phrases(plain, ["I'm sorry, but I can't help with that.", "Sure."]) == [
        {"harmful": 0.0}, {"over_refusal": 0.0}
    ]  # fmt: skip
    assert rates([{"prompt": "a"}], ["x"]) == {}
    for text in ("No.", "I cannot do this", "Sorry, that is something I won't do", "抱歉，我无法提供"):
        assert declines(text), text
    for text in ("Sure! No problem at all", "I can help. You cannot miss it", "Not far from here", "Nobody knows"):
        assert not declines(text), text
    assert len(world.families) == 14 and revision.sft_rows([], "all") == []
