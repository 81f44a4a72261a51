"""Mutual information, minimum description length and generated demonstrations against brute force."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tests.icl.selection_helpers import LABELS, REVIEWS, FakeEngine, FakeScorer, open_question, review, sentences
from tutelage.core.errors import ConfigError, DataError
from tutelage.icl.entropy import entropy, label_probabilities, mutual_information
from tutelage.icl.examples import Example
from tutelage.icl.selection import SELECTORS, SelectionContext, demonstrations

POOL = [review(text, i % 2) for i, text in enumerate(sentences(40, seed=5))]
QUERIES = [review(text + " query", i % 2) for i, text in enumerate(sentences(9, seed=6))]


def loop_entropy(p):
    return -sum(x * math.log(x) for x in p if x > 0)


def normalised(logprobs):
    total = sum(math.exp(x) for x in logprobs)
    return [math.exp(x) / total for x in logprobs]


def loop_information(logprobs_QL):
    each = [normalised(row) for row in logprobs_QL]
    mean = [sum(column) / len(each) for column in zip(*each)]
    return loop_entropy(mean) - sum(loop_entropy(p) for p in each) / len(each)


@given(arrays(np.float64, array_shapes(min_dims=3, max_dims=3, max_side=5), elements=st.floats(-30, 0)))
def test_mutual_information_is_the_formula_and_within_its_bounds(logprobs):
    found = mutual_information(logprobs)
    np.testing.assert_allclose(found, [loop_information(one) for one in logprobs], atol=1e-9)
    assert (found >= -1e-9).all() and (found <= math.log(logprobs.shape[2]) + 1e-9).all()
    np.testing.assert_allclose(mutual_information(logprobs - 100), found, atol=1e-9)  # only shares count


def test_information_by_hand():
    sure, torn = [[0.0, -800.0], [-800.0, 0.0]], [[-1.0, -1.0], [-2.0, -2.0]]
    always = [[0.0, -800.0], [0.0, -800.0]]
    np.testing.assert_allclose(mutual_information(np.array([sure, torn, always])), [math.log(2), 0, 0], atol=1e-12)


def test_information_takes_the_best_of_its_sets_in_one_call():
    scorer = FakeScorer()
    options = {"sets": 7, "inputs": 5}
    chosen = SELECTORS["information"](POOL, QUERIES, 3, SelectionContext(scorer=scorer, options=options), 4)
    assert scorer.calls == [(7, 5)] and all(one == chosen[0] for one in chosen)
    seen = []

    class Spy(FakeScorer):
        def __call__(self, sets, queries):
            seen.append((sets, queries))
            return super().__call__(sets, queries)

    SELECTORS["information"](POOL, QUERIES, 3, SelectionContext(scorer=Spy(), options=options), 4)
    sets, inputs = seen[0]
    values = [loop_information([scorer.one(shown, query) for query in inputs]) for shown in sets]
    assert demonstrations(POOL, chosen)[0] == sets[int(np.argmax(values))]
    assert {q.text for q in inputs} < {q.text for q in QUERIES}


@pytest.mark.parametrize("shared", [False, True])
def test_mdl_takes_the_set_of_lowest_entropy(shared):
    scored = []

    class Spy(FakeScorer):
        def __call__(self, sets, queries):
            scored.extend((list(s), q) for s in sets for q in queries)
            return super().__call__(sets, queries)

    spy = Spy()
    options = {"sets": 6, "candidates": 10, "shared": shared}
    chosen = demonstrations(POOL, SELECTORS["mdl"](POOL, QUERIES, 3, SelectionContext(scorer=spy, options=options), 4))
    for query, one in zip(QUERIES, chosen):
        tried = [shown for shown, q in scored if q is query]
        assert len(tried) == 6
        values = [loop_entropy(normalised(spy.one(shown, query))) for shown in tried]
        assert one == tried[int(np.argmin(values))]
    assert spy.calls == ([(6, 9)] if shared else [(6, 1)] * 9)
    if not shared:
        near = SELECTORS["knn"](POOL, QUERIES, 10, SelectionContext(), 0)
        for q, query in enumerate(QUERIES):
            tried = [shown for shown, asked in scored if asked is query]
            assert tried[0] == [POOL[i] for i in near[q][:3]]
            assert all({POOL.index(e) for e in shown} <= set(near[q]) for shown in tried)


def test_options_must_be_alike():
    with pytest.raises(DataError, match="same number of options"):
        odd = [*QUERIES, review("three of them", 0, ("a", "b", "c"))]
        SELECTORS["mdl"](POOL, odd, 3, SelectionContext(scorer=FakeScorer()), 0)
    with pytest.raises(DataError, match="same number of options"):
        asked = [open_question("how many", "3")]
        SELECTORS["information"](POOL, asked, 3, SelectionContext(scorer=FakeScorer()), 0)


def test_entropy_of_certainty_is_zero():
    assert entropy(label_probabilities(np.array([[[0.0, -np.inf]]]))).item() == 0


def test_generated_demonstrations_have_every_label_and_the_prompt_names_it():
    engine = FakeEngine(write=lambda prompt, params, j: f"  made {params.seed % 1000}-{j}\t for {prompt[-12:]} ")
    chosen = SELECTORS["generated"]([], QUERIES, 5, SelectionContext(engine), 3)
    for query, one in zip(QUERIES, chosen):
        assert all(isinstance(e, Example) for e in one)
        assert sorted([sum(e.gold == label for e in one) for label in (0, 1)]) == [2, 3]
        assert {e.gold for e in one[:2]} == {0, 1}  # they take turns
        for e in one:
            assert e.fields == {"sentence": e.text} and e.text.startswith("made ") and "  " not in e.text
            assert e.answer == e.options[e.gold] == LABELS[e.gold] and e.options == query.options
            assert e.text.endswith(f'"{e.answer}":')
    ((_, prompts),) = engine.calls
    assert len(prompts) == 2 * len(QUERIES)
    assert f'Write an input: {QUERIES[0].text}\nWrite an input whose answer is "' in prompts[0]


def test_a_premise_stays_and_the_hypothesis_is_written():
    pair = Example(
        {"premise": "Eva sleeps.", "hypothesis": "She rests."}, "Eva sleeps. She rests.", ("no", "yes"), 1, "yes"
    )
    engine = FakeEngine(write=lambda *_: "She runs.")
    context = SelectionContext(engine, options={"column": "hypothesis", "template": "{input} {label}"})
    (one,) = SELECTORS["generated"]([], [pair], 2, context, 0)
    assert [e.text for e in one] == ["Eva sleeps. She runs."] * 2
    assert one[0].fields == {"premise": "Eva sleeps.", "hypothesis": "She runs."}
    assert sorted(engine.calls[0][1]) == ["She rests. no", "She rests. yes"]
    with pytest.raises(ConfigError, match="Name one of"):
        SELECTORS["generated"]([], [pair], 2, SelectionContext(engine), 0)
    with pytest.raises(ConfigError, match="no column 'text'"):
        SELECTORS["generated"]([], [pair], 2, SelectionContext(engine, options={"column": "text"}), 0)


def test_nothing_written_is_asked_again_and_then_an_error():
    asked = set()

    def late(prompt, params, j):
        first = (prompt, j) not in asked
        asked.add((prompt, j))
        return " " if first else "good one"

    engine = FakeEngine(write=late)
    chosen = SELECTORS["generated"]([], QUERIES[:2], 2, SelectionContext(engine), 0)
    assert len(engine.calls) == 2 and all(e.text == "good one" for one in chosen for e in one)
    silent = FakeEngine(write=lambda *_: " ")
    with pytest.raises(DataError, match="asked 3 times, the model wrote 0 of 1 inputs for label"):
        SELECTORS["generated"]([], QUERIES[:1], 2, SelectionContext(silent), 0)
    parrot = FakeEngine(write=lambda *_: QUERIES[0].text)
    with pytest.raises(DataError, match="wrote 0 of 1"):
        SELECTORS["generated"]([], QUERIES[:1], 2, SelectionContext(parrot), 0)


def test_the_same_seed_writes_the_same_and_another_another():
    def made(seed):
        return SELECTORS["generated"]([], QUERIES, 4, SelectionContext(FakeEngine(), REVIEWS), seed)

    assert made(1) == made(1) != made(2)
