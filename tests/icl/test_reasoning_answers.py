"""Answers at the end of chains of thought: extraction, the published cleansing rules, equality."""

from __future__ import annotations

import pytest

from tutelage.text.answers import answer_key, cleanse, extract_answer, number_text, same_answer, same_mathematics


@pytest.mark.parametrize(
    ("text", "kind", "answer"),
    [
        ("4 * 9 = 36. The answer is 1,204.", "number", "1204"),
        ("so it costs $3.50", "number", "3.5"),
        ("2 + 2 = 4\n#### 4", "number", "4"),
        ("#### -12", "number", "-12"),
        ("The answer is 10. Q: What is 7?", "number", "10"),
        ("The answer is 3. No: the answer is 5.", "number", "5"),
        ("nothing to see", "number", None),
        ("Cold keeps it. The answer is (C).", "choice", "C"),
        ("I would say (B) as A is too hot", "choice", "B"),
        ("A dog ran", "choice", None),
        ("The answer is yes.", "yes_no", "yes"),
        ("No, or rather yes. So the answer is No", "yes_no", "no"),
        ("Nobody knows. Yes.", "yes_no", "yes"),
        ("notes", "yes_no", None),
        ('Concatenating them is "nk". The answer is nk.', "text", "nk"),
        ('The answer is "n k".', "text", "n k"),
        ("The answer is: thrill splutter\nQ: next", "text", "thrill splutter"),
        ("nk", "text", None),
        ("The answer is", "text", None),
    ],
)
def test_chains(text, kind, answer):
    assert extract_answer(text, kind) == answer


@pytest.mark.parametrize(
    ("text", "kind", "few_shot", "answer"),
    [
        (" 1,204 of 7.", "number", False, "1204"),  # the first one, without its comma
        (" 39.", "number", False, "39"),  # and without the stop behind it
        (" -3.5 degrees", "number", False, "-3.5"),
        ("5 and 6, so 11", "number", True, "11"),  # few-shot without the words: the last one
        ("5 and 6. The answer is 11, not 12", "number", True, "11"),
        (" (C) because B", "choice", False, "C"),
        (" Apples", "choice", False, "A"),  # naive as published
        ("the answer is YES, not no", "yes_no", False, "yes"),
        (' "y a\nj o".', "text", False, "yajo"),
        (" ", "text", False, None),
        (" none", "number", False, None),
    ],
)
def test_the_published_cleansing(text, kind, few_shot, answer):
    assert cleanse(text, kind, few_shot=few_shot) == answer


def test_choices_beyond_the_given_letters_are_none():
    assert cleanse(" D", "choice", "ABC") is None and extract_answer("The answer is (D).", "choice", "ABC") is None


def test_equality():
    assert same_answer("1204.0", "1,204", "number") and same_answer("0.333333333", "0.3333333333", "number")
    assert not same_answer("12", "1204", "number") and not same_answer(None, "5", "number")
    assert same_answer("(B)", "B", "choice") and not same_answer("A", "B", "choice")
    assert same_answer("Y a j o.", "yajo", "text") and same_answer("Yes", "yes", "yes_no")
    assert answer_key("1,204.00", "number") == "1204" and answer_key("y a j o", "text") == "yajo"
    assert number_text(1e15) == "1000000000000000" and number_text(0.1) == "0.1"


def test_mathematics():
    assert same_mathematics("1/2", "0.5") and same_mathematics(r"\frac{1}{2}", "1/2")
    assert same_mathematics("2*sqrt(3)", r"2\sqrt{3}") and not same_mathematics("x+1", "x+2")
