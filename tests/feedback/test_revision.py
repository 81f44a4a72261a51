"""Rounds of critique and revision: what is asked, what is kept, and that rows do not depend on their batch."""

import pytest

from tests.feedback.scripted import Scripted
from tutelage.core.errors import ConfigError
from tutelage.engine import load
from tutelage.feedback.asking import Asker
from tutelage.feedback.constitution import Constitution, Principle, load_constitution
from tutelage.feedback.revision import Revising, revise_rows, sft_rows, texts_of_round

ROWS = [{"prompt": f"question {i}", "tag": i} for i in range(5)]


def constitution(n=3):
    return Constitution(principles=[Principle(name=f"p{i}", critique=f"c{i}?", revision=f"r{i}.") for i in range(n)])


def reply(prompt):
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    if text.rstrip().endswith("Revision:"):
        return f" better than {text.count('CritiqueRequest')}"
    return " bad because" if text.rstrip().endswith("Critique:") else " first answer"


@pytest.mark.parametrize("style", ["chat", "text"])
def test_each_round_sees_the_answer_before_and_keeps_everything(style):
    engine = Scripted(reply)
    c = constitution()
    rows = revise_rows(Asker(engine, c.format, style), c, ROWS, Revising(rounds=2))
    texts = [p if isinstance(p, str) else p[-1]["content"] for p in engine.asked]
    assert len(texts) == 5 * 5
    row, made = rows[0], rows[0]["rounds"]
    assert row["answer"] == "first answer" and row["tag"] == 0 and len(made) == 2
    before = "\n\nHuman: question 0\n\nAssistant: first answer" + f"\n\nCritiqueRequest: {made[0]['critique_request']}"
    critique = before + "\n\nCritique:"
    revision = f"{critique} bad because\n\nRevisionRequest: {made[0]['revision_request']}\n\nRevision:"
    shown = [critique, revision] if style == "text" else [critique.strip(), revision.strip()]
    assert texts[5] == shown[0] and texts[10] == shown[1]
    assert "Assistant: better than 1\n\nCritiqueRequest" in texts[15]
    assert {m["principle"] for r in rows for m in r["rounds"]} <= {"p0", "p1", "p2"}
    for m in made:
        assert m["critique_request"][1] == m["principle"][1] == m["revision_request"][1]
    assert [texts_of_round(row, n) for n in range(3)] == ["first answer", "better than 1", "better than 1"]


def test_rows_for_sft_are_all_revisions_or_the_last():
    c = constitution()
    rows = revise_rows(Asker(Scripted(reply), c.format, "text"), c, ROWS, Revising(rounds=3))
    every, last = sft_rows(rows, "all"), sft_rows(rows, "last")
    assert len(every) == 15 and len(last) == 5 and {r["round"] for r in last} == {3}
    assert set(every[0]) == {"prompt", "completion", "round", "principle"}
    rows[0]["error"] = "too long"
    assert len(sft_rows(rows, "all")) == 12
    rows[1]["rounds"][0]["revision"] = ""
    assert len(sft_rows(rows, "all")) == 11


def test_principles_and_samples_do_not_depend_on_the_batch():
    c = constitution(16)
    settings = Revising(rounds=2, seed=7)
    whole, parts = Scripted(reply), Scripted(reply)
    rows = revise_rows(Asker(whole, c.format, "text"), c, ROWS, settings, 0, "x")
    cut = revise_rows(Asker(parts, c.format, "text"), c, ROWS[:2], settings, 0, "x")
    cut += revise_rows(Asker(parts, c.format, "text"), c, ROWS[2:], settings, 2, "x")
    assert cut == rows
    assert sorted(p.seed for p in parts.params) == sorted(p.seed for p in whole.params)
    assert len({p.seed for p in whole.params}) == len(whole.params)
    drawn = [m["principle"] for r in rows for m in r["rounds"]]
    assert len(set(drawn)) > 5


def test_examples_stand_in_front_as_far_as_there_is_room(chain):
    engine, c = load(chain / "sft"), load_constitution("general")
    text = "\n\nHuman: hi\n\nAssistant: hello\n\nCritiqueRequest: why?\n\nCritique:"
    asker = Asker(engine, c.format)
    assert asker.chat and not asker.stops()
    short = ["a b c. "] * 3
    assert asker.with_examples(short, text, 8) == "a b c. " * 3 + text
    long = ["word " * 400, "a b c. "]
    assert asker.with_examples(long, text, 8) == text
    assert asker.prompt(text)[0]["content"] == text.strip()


def test_a_model_without_template_does_not_chat(chain):
    engine = load(chain / "sft")
    engine.tokenizer.chat_template = None
    form = load_constitution("general").format
    assert not Asker(engine, form).chat
    with pytest.raises(ConfigError, match="style=text"):
        Asker(engine, form, "chat")


def test_what_is_too_long_becomes_the_rows_error(chain):
    engine, c = load(chain / "sft"), load_constitution("schoolroom")
    rows = [{"prompt": "how do i hit a nail?"}, {"prompt": "word " * 400}]
    found = revise_rows(Asker(engine, c.format), c, rows, Revising(rounds=2, max_tokens=4, critique_tokens=4))
    assert "context" in found[1]["error"] and "error" not in found[0]
    assert len(found[0]["rounds"]) == 2 and found[1]["rounds"] == []
    assert len(sft_rows(found, "all")) <= 2
