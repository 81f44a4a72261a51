"""The held-out rule of a corpus: whole stretches, disjoint, complete."""

import pytest

from tutelage.core.errors import DataError
from tutelage.text.split import EVERY, STRETCH, divide, pieces, stretches


def _book(count: int, words: int = 40) -> list[str]:
    return [f"Paragraph {i}:" + f" word{i}" * words for i in range(count)]


@pytest.mark.parametrize("count", [2, 7, 19, 20, 21, 400, 9_000])
def test_parts_are_disjoint_and_together_everything(count):
    book = _book(count, words=100)
    train, held = list(divide(book, "train")), list(divide(book, "heldout"))
    assert train and held
    assert sorted(train + held) == sorted(book)
    assert len(set(train) & set(held)) == 0
    if count > 100:
        share = sum(map(len, held)) / sum(map(len, book))
        assert 0.03 < share < 0.07


def test_a_held_out_paragraph_stands_among_held_out_paragraphs():
    book = _book(9_000, words=100)
    held = [book.index(d) for d in divide(book, "heldout")]
    runs = 1 + sum(b - a > 1 for a, b in zip(held, held[1:]))
    assert len(held) / runs > 20  # single paragraphs held out would give runs of 1
    assert runs == len(list(stretches(book))) // EVERY


def test_a_book_without_blank_lines_is_cut_at_line_ends_and_loses_nothing():
    book = "\n".join(f"line {i} of a book that never leaves a line blank" for i in range(5_000))
    cut = list(pieces(book, STRETCH))
    assert "\n".join(cut) == book
    assert all(len(piece) <= 2 * STRETCH for piece in cut)
    held = list(divide([book], "heldout"))
    assert 0.02 < sum(map(len, held)) / len(book) < 0.08


def test_short_documents_of_several_lines_stay_whole():
    stories = ["\n".join(f"story {i} line {j}" for j in range(20)) for i in range(30)]
    assert sorted([*divide(stories, "train"), *divide(stories, "heldout")]) == sorted(stories)


def test_one_piece_cannot_be_divided():
    with pytest.raises(DataError, match="nothing can be held out"):
        list(divide(["all in one line"], "train"))
