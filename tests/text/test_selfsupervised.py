"""What plain text asks of itself: nothing is lost, and every example is what it says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.core.errors import DataError
from tutelage.text.selfsupervised import (
    FUNCTION_WORDS,
    KINDS,
    SYMBOLS,
    SelfSupervised,
    arranged,
    last_phrase,
    masked_word,
    next_sentence,
    sentences,
    split_phrase,
    window,
)

WORD = st.sampled_from("the of in hat cup red runs sings very Tom is to mat lamp".split())
SENTENCE = st.lists(WORD, min_size=2, max_size=9).map(lambda words: " ".join(words) + ".")
TEXT = st.lists(SENTENCE, min_size=3, max_size=6)
SEED = st.integers(0, 2**31)
quick = settings(max_examples=60, deadline=None)


def rng(seed):
    return np.random.default_rng(seed)


def test_sentences_end_at_marks_and_line_breaks():
    text = 'He came. "Why?" she asked!\nNo one knew\n\n他来了。她笑了！'
    assert sentences(text) == ["He came.", '"Why?" she asked!', "No one knew", "他来了。", "她笑了！"]


@quick
@given(TEXT)
def test_sentences_of_joined_sentences_are_these(text):
    assert sentences(" ".join(text)) == text


@quick
@given(TEXT, SEED)
def test_a_window_is_three_to_five_consecutive_sentences(text, seed):
    found = window(text, rng(seed))
    assert 3 <= len(found) <= 5
    assert any(text[i : i + len(found)] == found for i in range(len(text)))


@quick
@given(TEXT, SEED)
def test_next_sentence_loses_nothing(text, seed):
    pair = next_sentence(text, rng(seed))
    assert f"{pair.input} {pair.output}" == " ".join(text) and pair.output == text[-1]


@quick
@given(TEXT, SEED)
def test_masked_words_put_back_give_the_text(text, seed):
    pair = masked_word(text, rng(seed))
    words, missing = pair.input.split(), pair.output.split()
    symbols = {word for word in words if word in SYMBOLS}
    assert len(symbols) == 1 and 1 <= len(missing) <= min(20, len(words) // 2)
    hidden = iter(missing)
    assert " ".join(next(hidden) if word in SYMBOLS else word for word in words) == " ".join(text)
    assert next(hidden, None) is None


def test_a_text_of_one_word_has_none_to_mask():
    assert masked_word(["他来了。"], rng(0)) is None


@quick
@given(SENTENCE)
def test_the_last_phrase_begins_at_the_last_function_word(sentence):
    words = sentence.rstrip(".").split()
    found = split_phrase(sentence)
    places = [i for i, word in enumerate(words) if i and word.lower() in FUNCTION_WORDS]
    if not places:
        assert found is None
    else:
        assert found == (" ".join(words[: places[-1]]), " ".join(words[places[-1] :]))


@quick
@given(TEXT, TEXT, SEED)
def test_last_phrases_are_asked_for_and_judged(text, other, seed):
    mine, theirs = split_phrase(text[-1]), split_phrase(other[-1])
    said, judged = (last_phrase(text, rng(seed), choose, other) for choose in (False, True))
    if mine is None:
        assert said is None and judged is None
        return
    assert said.input == f"{' '.join(text[:-1])} Question: {mine[0]}?" and said.output == f"Answer: {mine[1]}"
    if judged is None:
        assert theirs is None or theirs[1] == mine[1]
        return
    shown = judged.input.removeprefix(f"{said.input} Answer: ")
    assert (shown, judged.output) in ((mine[1], "True"), (theirs[1], "False"))


def test_judged_phrases_are_right_in_half_of_the_cases():
    text, other = ["a b.", "c d.", "Tom is in the park."], ["a b.", "c d.", "Ann is at the mill."]
    answers = [last_phrase(text, rng(i), True, other).output for i in range(400)]
    assert 160 < answers.count("True") < 240


@quick
@given(st.lists(SENTENCE, min_size=3, max_size=5, unique=True), SEED)
def test_inputs_of_a_classification_are_what_they_are_called(text, seed):
    other = [f"other {i}." for i in range(3)]
    made = {kind: sentences(arranged(text, kind, other, rng(seed))) for kind in KINDS}
    assert made["original"] == text and made["other"] == other
    assert sorted(made["shuffled"]) == sorted(text) and made["shuffled"] != text
    replaced = [s for s in made["mixed"] if s.startswith("other")]
    assert replaced == other[: len(replaced)] and len(replaced) == (len(text) + 1) // 2
    assert all(a == b or a in other for a, b in zip(made["mixed"], text, strict=True))


DOCUMENTS = [" ".join(f"Person {d} is in place {i}." for i in range(6)) for d in "abcdefgh"]


def test_a_classification_names_two_or_three_kinds_with_words_of_the_text():
    made = SelfSupervised(DOCUMENTS, "text")
    seen = set()
    for seed in range(30):
        pairs = made.examples("classification", 40, rng(seed))
        names = {pair.output for pair in pairs}
        assert len(names) in (2, 3) and names <= set(made.words)
        seen |= names
        straight = {pair.output for pair in pairs if any(pair.input in text for text in DOCUMENTS)}
        own = [p.output for p in pairs]
        assert straight and len(own) == 40
    assert len(seen) > 3  # other words for other sequences: only the examples before tell what they mean


@pytest.mark.parametrize("objective", ["next_sentence", "masked_word", "last_phrase", "classification"])
def test_draws_follow_from_the_generator_alone(objective):
    made = SelfSupervised(DOCUMENTS, "text")
    assert made.examples(objective, 5, rng(3)) == made.examples(objective, 5, rng(3))
    assert made.examples(objective, 5, rng(3)) != made.examples(objective, 5, rng(4))


def test_texts_that_cannot_serve_are_refused():
    with pytest.raises(DataError, match="short.txt: 1 documents of 3 sentences"):
        SelfSupervised([*DOCUMENTS[:1], "One. Two."], "short.txt")
    chinese = SelfSupervised(["他来了。她笑了。天黑了。", "雨停了。鸟飞了。花开了。"], "zh")
    assert {p.output for p in chinese.examples("classification", 9, rng(0))} <= set("ABCD")
    with pytest.raises(DataError, match="objective=last_phrase: hardly any passage"):
        chinese.examples("last_phrase", 2, rng(0))
