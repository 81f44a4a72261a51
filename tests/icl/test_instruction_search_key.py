"""`instructions=`: one instruction by any method, on training examples alone, and what the stage writes about it."""

import json

import numpy as np
import pytest

from tests.icl.instruction_helpers import REVIEWS, ScriptedEngine, review, tiny_engine, token_logprobs
from tests.icl.test_icl_stage import made, rows  # noqa: F401
from tutelage.core.errors import ConfigError, DataError
from tutelage.engine import Score
from tutelage.icl.examples import Example
from tutelage.icl.instructions import InstructionSearch, by_information, by_perplexity, in_format, search_instructions
from tutelage.icl.prompts import Prompter
from tutelage.pipeline.stages import run

POOL = [review(f"a {word} film number {i}", i % 2) for i, word in enumerate(["dull", "fine"] * 10)]
SMALL = InstructionSearch(candidates=4, examples=6, shown=3, rounds=0)


def local(engine):
    """A scripted engine that passes for one in this process."""
    engine.tokenizer = object()
    return engine


def search(method, engine, **more):
    return search_instructions(method, engine, **{"examples": POOL, "form": REVIEWS, "settings": SMALL, **more})


def test_ape_tries_in_the_tasks_own_format_and_shows_what_it_does_not_try():
    engine = local(ScriptedEngine(lambda p: ["say it", "tell me"], lambda a, b: [-1.0 if "tell me" in a else -2.0]))
    found = search("ape", engine)
    assert [(r.instruction, r.score, r.evaluations) for r in found] == [("tell me", -1.0, 6), ("say it", -2.0, 6)]
    contexts = {a for a, _ in engine.scored[0]}
    texts = {f"{i}\n\nReview: {e.text}\nSentiment: " for i in ("say it", "tell me") for e in POOL}
    assert contexts < texts and len(contexts) == 12
    tried = [e.text for e in POOL if any(f"Review: {e.text}\n" in c for c in contexts)]
    assert len(tried) == 6 and not any(f"{text}\n" in p for text in tried for p in engine.generated[0])


@pytest.mark.parametrize("method", ["ape", "induction"])
def test_another_model_writes_and_the_model_judges(method):
    writer = ScriptedEngine(lambda p: ["name it"])
    judge = local(ScriptedEngine(lambda p: ["positive"], lambda a, b: [-1.0]))
    found = search(method, judge, proposer=writer)
    assert [r.instruction for r in found] == ["name it"] and len(writer.generated) == 1 and not writer.scored
    if method == "ape":
        assert judge.scored and not judge.generated
    else:  # carried out, as in its paper: half of the examples are positive
        assert judge.generated and not judge.scored and 0 < found[0].score < 1


def test_induction_asks_as_often_as_there_are_candidates():
    engine = local(ScriptedEngine(lambda p: ["name it"]))
    search("induction", engine)
    assert len(engine.generated[0]) == 4
    found = search("induction", engine := local(ScriptedEngine(lambda p: ["x"], lambda a, b: [-3.0])),
                   settings=SMALL.model_copy(update={"by": "likelihood"}))  # fmt: skip
    assert found[0].score == -3.0 and engine.scored


@pytest.mark.parametrize(("method", "choose"), [("perplexity", by_perplexity), ("mutual_information", by_information)])
def test_choice_among_wordings_is_that_of_the_parts(method, choose):
    engine = tiny_engine()
    found = search(method, engine, instruction="Is it good?")
    wordings = {r.instruction for r in found}
    assert "Is it good?" in wordings and len(wordings) > 2 and {r.evaluations for r in found} == {6}
    tried = [POOL[i] for i in np.random.default_rng([0, 23]).permutation(len(POOL))[:6]]
    same = choose(engine, sorted(wordings), tried, in_format(REVIEWS))
    scores = {r.instruction: r.score for r in same}
    assert all(r.score == pytest.approx(scores[r.instruction], abs=1e-5) for r in found)
    assert found[0].score == max(scores.values())
    if method == "perplexity":  # and that of a plain forward of every prompt
        form = REVIEWS.model_copy(update={"instruction": found[0].instruction})
        texts = [Prompter(form).prompt((), e) for e in tried]
        plain = [sum(v) / len(v) for v in (token_logprobs(engine, "", t) for t in texts)]
        assert found[0].score == pytest.approx(sum(plain) / len(plain), abs=1e-4)


def test_labels_are_not_read_where_a_method_needs_none():
    engine = tiny_engine()
    flipped = [review(e.text, 1 - e.gold) for e in POOL]
    for method in ("perplexity", "mutual_information"):
        a, b = (search(method, engine, examples=pool, instruction="Is it good?") for pool in (POOL, flipped))
        assert a == b


class NoEcho(ScriptedEngine):
    """A server without log-probs of its prompt."""

    def score(self, pairs):
        return [Score(float("nan"), error="the server gives no log-probs of its prompt") for _ in pairs]


@pytest.mark.parametrize("method", ["ape", "perplexity", "mutual_information"])
def test_a_server_without_logprobs_is_told_before_anything_is_asked(method):
    server = NoEcho(lambda p: ["name it"])
    with pytest.raises(
        ConfigError, match="no log-probs of its prompt. instructions=induction, or ape with search.by=ex"
    ):
        search(method, server, instruction="Is it good?")
    assert not server.generated
    found = search("ape", server, settings=SMALL.model_copy(update={"by": "execution"}))
    assert found[0].instruction == "name it"


@pytest.mark.parametrize(
    ("method", "more", "error", "message"),
    [
        ("apes", {}, ConfigError, "one of none, ape, induction, perplexity"),
        ("perplexity", {}, ConfigError, "give instruction='...' or search.seeds"),
        ("ape", {"examples": POOL[:3]}, DataError, "3 training examples; search.shown=3 and one to try"),
        ("perplexity", {"examples": [], "instruction": "x"}, DataError, "there are none"),
        (
            "mutual_information",
            {"examples": [Example({"text": "a"}, "a", (), -1, "b")], "instruction": "x"},
            ConfigError,
            "this task's answers are open",
        ),
    ],
)
def test_what_cannot_be_searched_is_told(method, more, error, message):
    with pytest.raises(error, match=message):
        search(method, local(ScriptedEngine()), **more)


SEARCH = {"candidates": 5, "examples": 4, "shown": 2, "rounds": 2, "answer_tokens": 4}


def test_a_sweep_over_methods_records_what_it_chose(made, tmp_path, monkeypatch):  # noqa: F811
    import tutelage.stages.icl as stage

    task, model = made
    read, plain = [], stage.search_instructions
    monkeypatch.setattr(stage, "search_instructions", lambda *a, **k: read.append(a[2]) or plain(*a, **k))
    methods = ["none", "ape", "induction", "perplexity", "mutual_information"]
    words = {"task": task, "model": model, "instruction": "Is it good?", "instructions": methods, "search": SEARCH}
    path = run("icl", **words, shots=[0, 2], seeds=2, out=str(tmp_path / "out"))
    assert len(read) == 4 * 2  # once for both numbers of shots
    assert all(" train " in e.text for examples in read for e in examples)
    tried = [json.loads(line) for line in (path / "instructions.jsonl").read_text().splitlines()]
    found = rows(path)
    assert len(found) == 2 * 2 * 5
    for row in found:
        method = row["setting"]["instructions"]
        mine = [t for t in tried if (t["seed"], t["method"]) == (row["seed"], method)]
        assert ("searched" in row) == (method != "none") == bool(mine)
        if mine:
            assert [t["rank"] for t in mine] == list(range(1, len(mine) + 1)) and len(mine) == row["searched"][
                "candidates"
            ]
            best = max(t["score"] for t in mine if t["evaluations"] == mine[0]["evaluations"])
            assert row["searched"]["instruction"] == mine[0]["instruction"] and mine[0]["score"] == best
            assert row["searched"]["computed"] > 0
    summary = json.loads((path / "summary.json").read_text())
    cell = next(c for c in summary["cells"] if c["instructions"] == "ape" and c["shots"] == 2)
    assert [one["seed"] for one in cell["searched"]] == [0, 1]

    # the cell's predictions are those of a run that is given the instruction
    one = next(
        r for r in found if r["setting"]["instructions"] == "ape" and r["setting"]["shots"] == 2 and not r["seed"]
    )
    given = run("icl", task=task, model=model, instruction=one["searched"]["instruction"], shots=2,
                out=str(tmp_path / "given"))  # fmt: skip
    assert rows(given)[0]["accuracy"] == one["accuracy"]
    assert rows(given)[0]["entropy"] == pytest.approx(one["entropy"], abs=1e-6)


def test_a_search_that_was_cut_off_leaves_no_half_table(made, tmp_path, monkeypatch):  # noqa: F811
    import tutelage.stages.icl as stage

    task, model = made
    words = {"task": task, "model": model, "shots": 0, "instructions": "ape", "search": SEARCH, "seeds": 2}
    write, calls = stage.write_atomic, []

    def breaks(path, text):
        if path.name == "results.jsonl" and calls.append(path) is None and len(calls) == 2:
            raise RuntimeError("killed")
        write(path, text)

    monkeypatch.setattr(stage, "write_atomic", breaks)
    with pytest.raises(RuntimeError):
        run("icl", **words, out=str(tmp_path / "out"))
    again, whole = (run("icl", **words, out=str(tmp_path / name)) for name in ("out", "whole"))
    assert (again / "instructions.jsonl").read_text() == (whole / "instructions.jsonl").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"instructions": "apes"}, "one of none, ape"),
        ({"instructions": "perplexity"}, "search.seeds"),
        ({"instructions": "ape", "method": "zero_shot_cot"}, "is for method=score"),
        ({"instructions": "ape", "search": {"candidate": 3}}, "candidates"),
    ],
)
def test_a_search_that_means_nothing_is_refused(made, tmp_path, words, message):  # noqa: F811
    task, model = made
    with pytest.raises(ConfigError, match=message):
        run("icl", task=task, model=model, out=str(tmp_path / "out"), **words)


def test_the_proposer_is_loaded_and_part_of_the_run(made, tmp_path, monkeypatch):  # noqa: F811
    import tutelage.stages.icl as stage

    task, model = made
    loaded, plain = [], stage.load
    monkeypatch.setattr(stage, "load", lambda name, *a: loaded.append(name) or plain(name, *a))
    words = {"task": task, "model": model, "shots": 0, "instructions": "ape", "search": SEARCH}
    path = run("icl", **words, proposer=model, out=str(tmp_path / "out"))
    assert loaded == [model, model]
    parents = json.loads((path / "manifest.json").read_text())["parents"]
    assert sum(p["path"] == model for p in parents) == 2
