"""DPP's greedy choice against brute-force determinants, vote-k against a literal loop."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.test_local_engine import make_model, make_tokenizer
from tests.icl.selection_helpers import REVIEWS, FakeEngine, noise, open_question, review, sentences
from tutelage.core.errors import ConfigError
from tutelage.engine.local import LocalEngine
from tutelage.icl.prompts import Prompter
from tutelage.icl.selection import SELECTORS, SelectionContext
from tutelage.icl.selection.dpp import greedy_map, relevance_of
from tutelage.icl.selection.embed import similarity
from tutelage.icl.selection.lexical import tfidf
from tutelage.icl.selection.votek import VoteKOptions, Votes, _fitting, annotate, buckets, confidences, nearest_of


def brute_greedy(kernel, size):
    """Each step tries every candidate's log determinant."""
    chosen = []
    for _ in range(size):
        tried = {}
        for i in range(len(kernel)):
            if i not in chosen:
                sign, logdet = np.linalg.slogdet(kernel[np.ix_([*chosen, i], [*chosen, i])])
                tried[i] = logdet if sign > 0 else -math.inf
        chosen.append(max(tried, key=tried.get))
    return chosen


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 14), st.sampled_from([0.02, 0.1, 1.0]))
def test_the_greedy_choice_is_brute_forces(seed, count, weight):
    rng = np.random.default_rng(seed)
    rows, query = rng.normal(size=(count, 16)), rng.normal(size=(1, 16))
    relevance = relevance_of(similarity(query, rows, "cosine")[0], weight)
    cosine = (similarity(rows, rows, "cosine") + 1) / 2
    size = min(count, 6)
    kernel = relevance[:, None] * cosine * relevance[None]
    assert greedy_map(relevance, cosine, size, floor=0.0) == brute_greedy(kernel, size)


def test_relevance_by_hand():
    np.testing.assert_allclose(relevance_of(np.array([1.0, 0.0, -1.0]), 0.1), [1, math.exp(-2.5), math.exp(-5)])


def test_what_adds_nothing_is_not_chosen_by_the_process():
    same = np.ones((3, 3))
    assert greedy_map(np.ones(3), same, 3) == [0]


def test_dpp_avoids_the_near_copy_that_knn_takes():
    pool = [review(t) for t in ("superb acting and plot", "superb acting and a plot", "superb music", "rain fell")]
    queries = [review("superb acting and superb music in a plot")]
    near = SELECTORS["knn"](pool, queries, 2, SelectionContext(options={"by": "tfidf"}), 0)
    diverse = SELECTORS["dpp"](pool, queries, 2, SelectionContext(options={"weight": 1.0}), 0)
    assert set(near[0]) == {0, 1}
    assert 2 in diverse[0] and len({0, 1} & set(diverse[0])) == 1


def test_dpp_with_as_many_candidates_as_shots_is_knn():
    pool = [review(t) for t in sentences(30, seed=1)]
    queries = [review(t + " query") for t in sentences(6, seed=2)]
    near = SELECTORS["knn"](pool, queries, 5, SelectionContext(options={"by": "tfidf"}), 0)
    assert SELECTORS["dpp"](pool, queries, 5, SelectionContext(options={"candidates": 5}), 0) == near


def test_the_chosen_come_by_falling_relevance():
    pool = [review(t) for t in sentences(60, seed=3)]
    queries = [review(t + " query") for t in sentences(5, seed=4)]
    model = tfidf([e.text for e in pool])
    cosines = similarity(*(model.transform([e.text for e in part]) for part in (queries, pool)), "cosine")
    for q, chosen in enumerate(SELECTORS["dpp"](pool, queries, 8, SelectionContext(), 0)):
        assert (np.diff(cosines[q, chosen]) <= 1e-12).all() and len(set(chosen)) == 8


def loop_votes(cosines, neighbours, picks, groups=None):
    """The paper's formula, read aloud."""
    count = len(cosines)
    votes_for = {}
    for i in range(count):
        others = sorted((j for j in range(count) if j != i), key=lambda j: (-cosines[i][j], j))
        votes_for[i] = others[:neighbours]
    selected = []
    for step in range(picks):
        best, best_score = None, -1.0
        for u in range(count) if groups is None else groups[step]:
            if u in selected:
                continue
            score = 0.0
            for v in range(count):
                if v not in selected and u in votes_for[v]:
                    score += 10.0 ** -len([x for x in selected if x in votes_for[v]])
            if score > best_score:
                best, best_score = u, score
        selected.append(best)
    return selected


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(3, 18), st.integers(1, 6))
def test_votes_are_the_loops(seed, count, neighbours):
    rows = np.random.default_rng(seed).normal(size=(count, 4))
    cosines = similarity(rows, rows, "cosine")
    votes = Votes(nearest_of(rows, neighbours, block=5))
    assert [votes.pick() for _ in range(count)] == loop_votes(cosines, neighbours, count)


def test_both_stages_are_the_loops():
    pool = [review(t, i % 2) for i, t in enumerate(sentences(60, seed=8))]
    rows = tfidf([e.text for e in pool]).transform([e.text for e in pool])
    cosines = similarity(rows, rows, "cosine")
    engine, form = FakeEngine(), REVIEWS
    options = VoteKOptions(budget=20, neighbours=7)
    found = annotate(pool, rows, 4, options, SelectionContext(engine, form))

    first = loop_votes(cosines, 7, 2)
    confidence = {}
    for i in set(range(60)) - set(first):
        near = sorted(first, key=lambda j: -cosines[i][j])
        text = "\n\n".join([*(form.demonstration(pool[j]) for j in near[::-1]), form.query(pool[i])])
        tried = []
        for word in pool[i].options:
            tokens = engine.tokens(text, word)
            tried.append((sum(tokens), sum(tokens) / len(tokens)))
        confidence[i] = max(tried)[1]
    ascending = sorted(confidence, key=confidence.get)[: int(58 * 0.9)]
    groups = [[], [], *(list(part) for part in np.array_split(ascending, 18))]

    everything = loop_votes(cosines, 7, 2)
    votes = Votes(nearest_of(rows, 7))
    assert [votes.pick(), votes.pick()] == everything
    expected = [*everything, *loop_second(cosines, 7, everything, groups[2:])]
    assert found == expected
    assert len(engine.calls) == 1  # every question and option in one call


def loop_second(cosines, neighbours, selected, groups):
    count, selected = len(cosines), list(selected)
    votes_for = {
        i: sorted((j for j in range(count) if j != i), key=lambda j: (-cosines[i][j], j))[:neighbours]
        for i in range(count)
    }
    out = []
    for group in groups:
        score = {
            u: sum(
                10.0 ** -len([x for x in selected if x in votes_for[v]])
                for v in range(count)
                if v not in selected and u in votes_for[v]
            )
            for u in group
        }
        out.append(max(group, key=lambda u: score[u]))
        selected.append(out[-1])
    return out


def test_buckets_cut_the_least_confident_nine_tenths():
    parts = buckets(np.arange(100), 9)
    assert [len(part) for part in parts] == [10] * 9 and parts[-1][-1] == 89
    assert [len(part) for part in buckets(np.arange(10), 10)] == [1] * 10


def test_confidence_of_open_answers_is_the_mean_of_the_greedy_tokens():
    engine, form = FakeEngine(), REVIEWS
    asked = [open_question(t, "x") for t in sentences(3, seed=1)]
    found = confidences(asked, [[], [], []], 8, SelectionContext(engine, form))
    expected = [np.mean(engine.tokens(form.query(e), "generated")) for e in asked]
    np.testing.assert_allclose(found, expected)


def test_vote_k_gives_the_nearest_of_the_annotated():
    pool = [review(t, i % 2) for i, t in enumerate(sentences(50, seed=9))]
    queries = [review(t + " query") for t in sentences(6, seed=10)]
    context = SelectionContext(FakeEngine(), REVIEWS, options={"budget": 10, "neighbours": 6})
    chosen = SELECTORS["vote_k"](pool, queries, 3, context, 0)
    assert len({i for one in chosen for i in one}) <= 10
    fast = SelectionContext(options={"budget": 10, "neighbours": 6, "confidence": False})
    assert len({i for one in SELECTORS["vote_k"](pool, queries, 3, fast, 0) for i in one}) <= 10
    with pytest.raises(ConfigError, match="budget=2 annotations are fewer than shots=3"):
        SELECTORS["vote_k"](pool, queries, 3, SelectionContext(options={"budget": 2}), 0)


def test_vote_k_reads_no_answer_that_it_did_not_pay_for():
    pool = [review(t, i % 2) for i, t in enumerate(sentences(40, seed=11))]
    options = {"budget": 10, "neighbours": 6}
    chosen = SELECTORS["vote_k"](pool, pool[:0] or [review("w1 w2 query")], 3, _with(options), 0)
    rows = tfidf([e.text for e in pool]).transform([e.text for e in pool])
    first = Votes(nearest_of(rows, 6)).pick()
    flipped = [e if i == first else review(e.text, 1 - e.gold) for i, e in enumerate(pool)]
    assert SELECTORS["vote_k"](flipped, [review("w1 w2 query")], 3, _with(options), 0) == chosen
    assert noise(1) != noise(2)  # the fake's scores do depend on what it reads


def _with(options):
    return SelectionContext(FakeEngine(), REVIEWS, options=options)


def test_demonstrations_that_do_not_fit_go_from_the_far_end():
    engine = LocalEngine(make_model("llama"), make_tokenizer())
    prompter = Prompter(REVIEWS)
    shown = [open_question(t, "x") for t in ("the dog ran", "one two", "tea")]
    query = open_question("the cat sat", "x")
    texts = [prompter.prompt(shown[i:], query) for i in range(4)]
    sizes = [len(engine.encode(text)) + 4 for text in texts]
    kept = next(i for i, size in enumerate(sizes) if size <= engine.context_length)
    assert 0 < kept < 4
    assert _fitting(engine, prompter, shown, query, 4) == texts[kept]


def test_what_cannot_be_predicted_is_the_least_confident(caplog):
    engine = LocalEngine(make_model("llama"), make_tokenizer())
    endless = "the " * 99
    for make in (review, lambda text: open_question(text, "x")):
        found = confidences([make("the cat sat"), make(endless)], [[], []], 8, SelectionContext(engine, REVIEWS))
        assert np.isfinite(found[0]) and found[1] == -np.inf
    assert "1 examples are too long" in caplog.text and "context is 64" in caplog.text


def test_confidence_of_options_is_that_of_the_likeliest():
    engine = LocalEngine(make_model("llama"), make_tokenizer())
    asked = [review(t) for t in ("the cat sat", "tea")]
    shown = [[review("one", 1)], []]
    for found, demos, e in zip(confidences(asked, shown, 8, SelectionContext(engine, REVIEWS)), shown, asked):
        text = Prompter(REVIEWS).prompt(demos, e)
        scores = engine.score([(text, option) for option in e.options])
        best = max(scores, key=lambda s: s.logprob)
        assert found == pytest.approx(best.logprob / len(best.token_logprobs), abs=1e-5)
