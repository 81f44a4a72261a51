"""Templates: both directions, halves, chat, and reading generated examples back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.core.errors import ConfigError, DataError
from tutelage.icl.builtin import TASKS
from tutelage.icl.examples import Example
from tutelage.icl.prompts import MINIMAL, Format, Prompter, with_answer

REVIEW = Format(
    input="Review: {text}", output="\nSentiment: {answer}", separator="\n\n",
    channel_input="Sentiment: {answer}\nReview: ",
)
GOOD = Example({"text": "a fine film"}, "a fine film", ("negative", "positive"), 1, "positive")
BAD = Example({"text": "a dull play"}, "a dull play", ("negative", "positive"), 0, "negative")


def test_direct_prompts_are_the_paper_s():
    prompter = Prompter(REVIEW)
    assert prompter.prefix([GOOD]) == "Review: a fine film\nSentiment: positive\n\n"
    assert prompter.pair(BAD, "positive") == ("Review: a dull play\nSentiment: ", "positive")
    assert prompter.prompt([GOOD], BAD).endswith("\n\nReview: a dull play\nSentiment: ")


def test_channel_prompts_are_flipped():
    prompter = Prompter(REVIEW, "channel")
    assert prompter.prefix([GOOD]) == "Sentiment: positive\nReview: a fine film\n\n"
    assert prompter.pair(BAD, "positive") == ("Sentiment: positive\nReview: ", "a dull play")


def test_the_minimal_format_is_metaicl_s():
    assert Prompter(MINIMAL).prefix([GOOD, BAD]) == "a fine film\npositive\n\n\na dull play\nnegative\n\n\n"
    assert Prompter(MINIMAL, "channel").prefix([GOOD]) == "positive\na fine film\n\n\n"


@pytest.mark.parametrize(
    ("direction", "parts", "expected"),
    [
        ("direct", "input", "Review: a fine film\n\n"),
        ("direct", "output", "Sentiment: positive\n\n"),
        ("channel", "input", "a fine film\n\n"),
        ("channel", "output", "Sentiment: positive\nReview:\n\n"),
    ],
)
def test_halves_stand_alone(direction, parts, expected):
    assert Prompter(REVIEW, direction, parts).prefix([GOOD]) == expected


def test_messages_for_a_chat_template():
    form = REVIEW.model_copy(update={"instruction": "Judge reviews."})
    turns = Prompter(form, chat=True).prompt([GOOD], BAD)
    assert [t["role"] for t in turns] == ["system", "user", "assistant", "user"]
    assert turns[1]["content"] == "Review: a fine film\nSentiment:" and turns[2]["content"] == "positive"
    assert turns[3]["content"].startswith("Review: a dull play")


def test_what_cannot_be_said_is_refused():
    with pytest.raises(ConfigError, match="chat"):
        Prompter(REVIEW, "channel", chat=True)
    with pytest.raises(DataError, match="no field 'title'; the example has text"):
        Prompter(Format(input="{title}")).prefix([GOOD])
    with pytest.raises(ValueError, match="must hold {answer}"):
        Format(output="no answer here")


LINES = st.text(st.characters(codec="ascii", exclude_characters="\n\r\x0b\x0c\x1c\x1d\x1e"), min_size=1)


@given(st.lists(LINES, min_size=1, max_size=5))
def test_inputs_are_read_back_from_demonstrations(texts):
    texts = [t.strip() for t in texts if t.strip() and "\nSentiment" not in t]
    demos = [Example({"text": t}, t, ("a", "b"), 0, "a") for t in texts]
    assert [found["text"] for found in REVIEW.parse(Prompter(REVIEW).prefix(demos))] == texts


def test_several_fields_are_read_back():
    asked = "{premise}\nQuestion: {hypothesis} true or false?"
    form = Format(input=asked, output="\nAnswer: {answer}", separator="\n\n")
    text = "It rains.\nQuestion: It is wet. true or false?\nAnswer: true\n\nhalf of one"
    assert form.parse(text) == [{"premise": "It rains.", "hypothesis": "It is wet."}]


def test_another_answer_moves_the_gold_index():
    assert with_answer(GOOD, "negative").gold == 0
    assert with_answer(GOOD, "quaint").gold == -1


def test_every_built_in_format_has_both_directions():
    for name, task in TASKS.items():
        form = Format(**task.get("format", {}))
        assert form.separator and "{answer}" in form.channel_input, name
