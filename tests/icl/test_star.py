"""STaR's parts: scratchpads, how questions are asked, the filter, what is learned of a row."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.icl.reasoning_engines import Scripted
from tutelage.core.errors import ConfigError, DataError
from tutelage.core.records import BadRows
from tutelage.icl.reasoning.problems import Problem
from tutelage.icl.star import arithmetic
from tutelage.icl.star.learn import encode_texts, saturated, steps_of, training_texts
from tutelage.icl.star.rationales import Asker, Asking, counted, read_rationales, taught, write_rationales
from tutelage.icl.star.tasks import Arithmetic, Checked, Item, Problems, Source, gather
from tutelage.studies.parts import word_tokenizer

PAPER = """<scratch>
6 2 4 + 2 5 9 , C: 0
2 + 5 , 3 C: 1
6 + 2 , 8 3 C: 0
, 8 8 3 C: 0
0 8 8 3
</scratch>
8 8 3"""


def asking(**over):
    plain = {"method": "star", "rationalise": True, "samples": 1, "temperature": 0.0, "top_p": 1.0, "agreement": 0.5,
             "max_tokens": 99, "seed": 0, "batch": 3}  # fmt: skip
    return Asking(**{**plain, **over})


def sums(*pairs, layout="remaining"):
    task = Arithmetic(range(1, 6), layout)
    return task, [task.item(pair) for pair in pairs]


def test_the_papers_scratchpad_letter_for_letter():
    assert arithmetic.scratchpad((624, 259), "pairs") == PAPER
    assert "\n6 2 + 2 5 , 3 C: 1\n" in arithmetic.scratchpad((624, 259), "remaining")
    assert arithmetic.prompt("6 2 4 + 2 5 9", "8 8 3") == "Input:\n6 2 4 + 2 5 9\nTarget: 8 8 3\n"


@st.composite
def pairs(draw):
    digits = draw(st.integers(1, 9))
    number = st.integers(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1)
    return draw(number), draw(number)


@settings(max_examples=200, deadline=None)
@given(pairs(), st.sampled_from(["remaining", "pairs"]))
def test_scratchpads_are_right_and_come_back_through_the_tokenizer(pair, layout):
    text = arithmetic.scratchpad(pair, layout)
    assert int(arithmetic.read_answer(text).replace(" ", "")) == sum(pair)
    carry, done = 0, ""
    for place, line in enumerate(text.splitlines()[2 : len(str(pair[0])) + 2], 1):
        first, second = (int(str(number)[-place]) for number in pair)
        carry, digit = divmod(first + second + carry, 10)
        done = f"{digit} {done}".strip()
        assert line.endswith(f", {done} C: {carry}")
    whole = arithmetic.prompt(arithmetic.question(pair)) + text
    tokenizer = word_tokenizer(arithmetic.WORDS)
    ids = tokenizer(whole)["input_ids"]
    assert tokenizer.decode(ids) == whole and tokenizer.unk_token_id not in ids


@pytest.mark.parametrize("text", ["", "8 8 3", "</scratch>", "</scratch>\n8 3 x", "</scratch>\n88", "</scratch>\n8\n8"])
def test_what_is_no_answer(text):
    assert arithmetic.read_answer(text) is None


def test_measured_sums_are_never_learned():
    found = gather(Source("arithmetic:1-3", None, None, None, "remaining", None, False, 3000, 90, 256, 4), BadRows())
    parts = [{item.question for item in items} for items in (found.train, found.held, found.test)]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert {item.group for item in found.train} == {"1", "2", "3"} and len(found.train) == 3000
    assert found.task.right(found.held, [item.rationale for item in found.held]) == [True] * len(found.held)


@pytest.mark.parametrize("data", ["arithmetic:", "arithmetic:0-3", "arithmetic:5-1", "arithmetic:1-40", "arithmetic:x"])
def test_wrong_numbers_of_digits(data):
    with pytest.raises(ConfigError, match="arithmetic:1-5"):
        arithmetic.digits_of(data)


def test_the_hint_of_every_kind():
    choice = Item("", "", problem=Problem("What holds ink?", "B", ("cup", "blotter"), "choice"))
    number = Item("", "", problem=Problem("How many?", "7", (), "number"))
    task = Problems(False, 64)
    assert task.prompt(choice, [], True).endswith("(A) cup (B) blotter (CORRECT)\nA:")
    shown = task.prompt(number, [choice], True)
    assert shown.startswith("Q: What holds ink? Answer Choices: (A) cup (B) blotter (CORRECT)")
    assert task.prompt(number, [], True) == "Q: How many? (7)\nA:" and "CORRECT" not in task.prompt(choice, [], False)
    checked = Checked(lambda prompts, completions, **_: [0.0] * len(prompts), True, 64)
    assert "(The answer is 9.)" in checked.prompt(Item("Why?", "9"), [], True)[-1]["content"]


def say(prompt, number):
    """Solves sums below 50 alone, those below 100 with the hint, and else writes a wrong answer."""
    asked = prompt.split("Input:\n")[-1].splitlines()
    first, second = (int(side.replace(" ", "")) for side in asked[0].split(" + "))
    right = arithmetic.scratchpad((first, second))
    total = first + second
    return right if total < 50 or (total < 100 and asked[1] != "Target:") else right[:-1] + "x"


def test_the_filter_is_exact_and_the_hint_is_not_learned(tmp_path):
    task, items = sums((11, 12), (30, 30), (60, 60), (20, 21), (45, 46), (99, 99), (10, 10))
    engine = Scripted(say)
    file = write_rationales(tmp_path, Asker(engine, task, [], asking()), items, [6, 0, 1, 2, 3, 4, 5], {}, "x")
    rows = read_rationales(file)
    assert [row["number"] for row in rows] == [6, 0, 1, 2, 3, 4, 5]
    assert {r["question"] for r in rows if r["samples"][0]["right"]} == {items[i].question for i in (0, 3, 6)}
    assert {r["question"] for r in rows if taught(r, "star") == [(items[r["number"]].rationale, True)]} == {
        items[i].question for i in (1, 4)
    }
    assert all(r["hinted"] is None for r in rows if r["samples"][0]["right"])
    learned = training_texts(rows, items, task, "star")
    assert len(learned) == 5
    for prompt, text in learned:  # nothing of the answer stands before the scratchpad
        assert prompt.endswith("\nTarget:\n") and text.startswith("<scratch>")
    told = counted(rows, "star")
    assert told["solved"] == 3 / 7 and told["rationalised"] == 2 / 7 and told["used"] == 5 / 7 and told["taught"] == 5
    hinted = [p for call in engine.calls for p in call if "Target: " in p]
    assert len(hinted) == 4  # the four that failed, each once


def test_without_rationalisation_nothing_is_asked_twice(tmp_path):
    task, items = sums((11, 12), (30, 30))
    engine = Scripted(say)
    how = asking(rationalise=False)
    rows = read_rationales(write_rationales(tmp_path, Asker(engine, task, [], how), items, [0, 1], {}, "x"))
    assert [len(taught(row, "star")) for row in rows] == [1, 0] and len(engine.calls) == 1


def test_cut_off_rationales_are_not_right():
    task, items = sums((11, 12))
    asker = Asker(None, task, [], asking())
    from tutelage.engine import Completion, Output

    text = items[0].rationale
    for reason, right in (("length", False), ("eos", True), ("stop", True)):
        assert asker.judged(items, [Output((), (Completion(text, (), (), reason),))])[0][0]["right"] is right
    number = Item("", "7", problem=Problem("How many?", "7", (), "number"))
    asker = Asker(None, Problems(False, 64), [], asking())
    said = Output((), (Completion("3 + 4 = 7. The answer is 7. And so on for 12", (), (), "length"),))
    assert asker.judged([number], [said])[0][0] == {
        "text": "3 + 4 = 7. The answer is 7.", "read": "7", "right": True, "finished": True
    }


def test_several_samples_and_the_majority(tmp_path):
    problem = Problem("How many?", "7", (), "number")
    item = Item(problem.text, "7", "", "", problem)
    said = ["a. The answer is 7.", "b. The answer is 7.", "a.  The answer is 7.", "The answer is 8."]
    engine = Scripted(lambda prompt, number: said[number])
    task = Problems(False, 64)

    def rows(**over):
        asker = Asker(engine, task, [], asking(samples=4, **over))
        return read_rationales(write_rationales(tmp_path / str(random.random()), asker, [item], [0], {}, "x"))

    (row,) = rows(method="rft")
    assert taught(row, "rft") == [("a. The answer is 7.", False), ("b. The answer is 7.", False)]
    said[:3] = ["The answer is 8.", "c. The answer is 8.", "b. The answer is 7."]
    (row,) = rows(method="self_consistency")
    assert row["label"] == "8" and taught(row, "self_consistency") == [
        ("The answer is 8.", False), ("c. The answer is 8.", False)
    ]  # fmt: skip
    assert counted([row], "self_consistency")["label_right"] == 0
    (row,) = rows(method="self_consistency", agreement=0.9)
    assert row["label"] is None and not taught(row, "self_consistency")


def test_an_interrupted_file_goes_on_to_the_same_rows(tmp_path):
    task, items = sums(*[(10 + i, 20 + i) for i in range(10)])
    order = list(range(10))
    whole = write_rationales(tmp_path / "a", Asker(Scripted(say), task, [], asking()), items, order, {}, "x")

    class Dies(Scripted):
        def generate(self, prompts, params=None):
            if len(self.calls) == 3:
                raise KeyboardInterrupt
            return super().generate(prompts, params)

    with pytest.raises(KeyboardInterrupt):
        write_rationales(tmp_path / "b", Asker(Dies(say), task, [], asking()), items, order, {}, "x")
    half = (tmp_path / "b/rationales.jsonl").read_bytes()
    assert 0 < len(half) < whole.stat().st_size
    again = write_rationales(tmp_path / "b", Asker(Scripted(say), task, [], asking()), items, order, {}, "x")
    assert again.read_bytes() == whole.read_bytes()


def test_a_batch_that_failed_whole_is_an_error():
    task, items = sums((11, 12))
    with pytest.raises(DataError, match="refused"):
        Asker(Scripted(lambda p, n: "REFUSED"), task, [], asking()).ask(items)


def test_labels_stand_on_the_rationale_alone():
    tokenizer = word_tokenizer(arithmetic.WORDS)
    task, items = sums((11, 12))
    prompt = task.prompt(items[0], [], False)
    (row,) = encode_texts([(prompt, items[0].rationale)], tokenizer, 99)
    learned = [token for token in row["labels"] if token != -100]
    assert tokenizer.decode(learned[:-1]) == items[0].rationale and learned[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(row["input_ids"][: -len(learned)]) == prompt
    assert not encode_texts([(prompt, items[0].rationale)], tokenizer, 20)


def test_growth_and_saturation():
    assert [steps_of(n, 40, 1.2, None) for n in (1, 2, 3)] == [40, 48, 58]
    assert [steps_of(n, 300, 1.2, 20) for n in (1, 2, 3)] == [300, 320, 340]
    assert not saturated([0.1, 0.2], 2, 0.01) and not saturated([0.5] * 9, 0, 0.01)
    assert saturated([0.1, 0.5, 0.5, 0.505], 2, 0.01) and not saturated([0.1, 0.5, 0.5, 0.52], 2, 0.01)
