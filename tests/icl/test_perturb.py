"""Each condition changes what it says and nothing else."""

from collections import Counter

import numpy as np
import pytest

from tutelage.core.errors import ConfigError, DataError
from tutelage.icl.examples import Example
from tutelage.icl.perturb import CONDITIONS, WORDS, Corpus, changed, changed_query, condition

LABELS = ("bad", "fair", "good")
DEMOS = [Example({"text": f"text {i}"}, f"text {i}", LABELS, i % 3, LABELS[i % 3]) for i in range(12)]
QUERY = Example({"text": "a b c"}, "a b c", LABELS, 2, "good")


def answers(name, seed=0, number=0):
    return [e.answer for e in changed(name, DEMOS, seed, number)]


@pytest.mark.parametrize("percent", [75, 50, 25, 0])
def test_exactly_that_share_is_correct(percent):
    for seed in range(5):
        right = sum(a == e.answer for a, e in zip(answers(f"correct_{percent}", seed), DEMOS))
        assert right == 12 * percent // 100


def test_which_ones_are_wrong_and_how_is_random():
    wrong = Counter()
    for seed in range(300):
        for e, changed_to in zip(DEMOS, answers("wrong", seed)):
            wrong[e.answer, changed_to] += 1
    assert len(wrong) == 6 and min(wrong.values()) > 450  # 1200 for each gold label, two others


def test_random_labels_are_uniform_and_differ_between_sets():
    found = Counter(a for seed in range(200) for a in answers("random", seed))
    assert all(abs(found[label] / 2400 - 1 / 3) < 0.04 for label in LABELS)
    assert answers("random", 0, 0) != answers("random", 0, 1)
    assert answers("random", 0, 1) == answers("random", 0, 1)


def test_permuted_labels_shift_in_queries_too():
    assert answers("permuted") == [LABELS[(i + 1) % 3] for i in range(12)]
    assert changed_query("permuted", QUERY, 0).answer == "bad" and changed_query("permuted", QUERY, 0).gold == 0


def test_english_words_are_one_injective_map():
    found = changed("english_words_gold", DEMOS, 7)
    table = {e.answer: f.answer for e, f in zip(DEMOS, found)}
    assert len(set(table.values())) == 3 and set(table.values()) <= set(WORDS)
    assert changed_query("english_words_gold", QUERY, 7).answer == table["good"]
    assert changed_query("english_words_gold", QUERY, 7).gold == 2
    assert {e.answer for e in changed("english_words", DEMOS, 7)} <= set(table.values())
    assert changed_query("english_words", QUERY, 7) == QUERY


def test_ood_inputs_are_about_as_long_as_the_query():
    corpus = Corpus([f"w{i} " * n for n in (1, 3, 30) for i in range(20)])
    found = changed("ood_inputs", DEMOS, 0, 0, QUERY, corpus)
    assert all(len(e.text.split()) in (1, 3) and e.fields["text"] == e.text for e in found)
    assert len({e.text for e in found}) == 12
    lengths = [len(s.split()) for seed in range(100) for s in corpus.draw(1, 3, np.random.default_rng(seed))]
    assert 0.4 < lengths.count(3) / 100 < 0.7  # 1 : exp(-4/50) : 0
    with pytest.raises(DataError, match="2 sentences"):
        changed("ood_inputs", DEMOS, 0, 0, QUERY, Corpus(["a", "b"]))
    with pytest.raises(ConfigError, match="corpus=FILE"):
        changed("ood_inputs", DEMOS, 0, 0, QUERY)


def test_inputs_stay_in_all_but_ood():
    for name in CONDITIONS:
        if name != "ood_inputs":
            assert [e.text for e in changed(name, DEMOS, 0)] == [e.text for e in DEMOS]


def test_an_unknown_condition_lists_the_known():
    with pytest.raises(ConfigError, match="gold, random, correct_75"):
        condition("golden")
    with pytest.raises(DataError, match="no options"):
        changed("random", [Example({}, "x")], 0)
