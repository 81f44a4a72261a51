"""The order of demonstrations: entropies by hand, the rules, the probing set, and a tiny model end to end."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.icl.instruction_helpers import REVIEWS, ScriptedEngine, context_of, review, tiny_engine, token_logprobs
from tutelage.core.errors import ConfigError, DataError
from tutelage.engine import SamplingParams, load
from tutelage.icl.entropy import global_entropy, local_entropy, mutual_information
from tutelage.icl.examples import Example
from tutelage.icl.order import (
    ORDERS,
    PROBING,
    OrderTools,
    order_rule,
    permutations,
    probe_orders,
    probing_set,
    rank_orders,
)
from tutelage.icl.prompts import Format
from tutelage.icl.tasks import load_task

DEMOS = [
    review("a warm and funny film about family", 1), review("it never finds a story worth telling", 0),
    review("the cast is a joy to watch", 1), review("two hours that feel like ten", 0),
]  # fmt: skip


def softmax(row: np.ndarray) -> list[float]:
    shares = [math.exp(x) for x in row]
    return [share / sum(shares) for share in shares]


def plain_entropy(shares: list[float]) -> float:
    return -sum(p * math.log(p) for p in shares if p > 0)


def plain_global(rows: np.ndarray) -> float:
    labels = len(rows[0])
    counts = [0.0] * labels
    for row in rows:
        counts[max(range(labels), key=lambda i: row[i])] += 1
    counts = [count or 1e-5 for count in counts]
    return plain_entropy([count / sum(counts) for count in counts])


def plain_local(rows: np.ndarray) -> float:
    return sum(plain_entropy(softmax(row)) for row in rows) / len(rows)


def plain_information(rows: np.ndarray) -> float:
    each = [softmax(row) for row in rows]
    mean = [sum(column) / len(each) for column in zip(*each)]
    return plain_entropy(mean) - sum(plain_entropy(p) for p in each) / len(each)


def test_entropies_and_information_equal_plain_loops():
    logprobs = np.random.default_rng(0).normal(-9, 4, size=(7, 11, 3))
    for found, plain in (
        (global_entropy, plain_global), (local_entropy, plain_local), (mutual_information, plain_information),
    ):  # fmt: skip
        assert found(logprobs) == pytest.approx([plain(rows) for rows in logprobs], abs=1e-12)


def test_entropies_at_their_ends():
    sure = np.log([[[0.999, 0.001]] * 4, [[0.999, 0.001]] * 2 + [[0.001, 0.999]] * 2, [[0.5, 0.5]] * 4])
    assert global_entropy(sure)[1] == pytest.approx(math.log(2))
    floor = 1e-5 / (4 + 1e-5)
    assert global_entropy(sure)[0] == pytest.approx(plain_entropy([1 - floor, floor]), abs=1e-12)
    assert local_entropy(sure)[2] == pytest.approx(math.log(2)) == mutual_information(sure)[2] + math.log(2)
    assert int(mutual_information(sure).argmax()) == 1
    assert local_entropy(np.array([[[0.0, -math.inf]]]))[0] == 0


@pytest.mark.parametrize(
    "logprobs", [np.zeros((2, 3)), np.zeros((2, 0, 3)), np.full((1, 1, 2), np.nan), np.full((1, 1, 2), -np.inf)]
)
def test_what_is_no_distribution_is_an_error(logprobs):
    with pytest.raises(DataError, match="log-probs"):
        global_entropy(logprobs)


def test_permutations_are_all_of_them_or_distinct_seeded_random_ones():
    assert permutations(3, 24) == list(itertools.permutations(range(3)))
    assert len(set(permutations(4, 24))) == 24
    some = permutations(5, 24, seed=1)
    assert len(set(some)) == 24 and all(sorted(order) == list(range(5)) for order in some)
    assert some == permutations(5, 24, seed=1) != permutations(5, 24, seed=2)
    assert len(set(permutations(16, 24))) == 24


def test_rules_without_a_model():
    def orders(name: str, **tools: int) -> list[tuple[int, ...]]:
        return [found.order for found in ORDERS[name](DEMOS, OrderTools(**tools))]

    assert orders("given") == orders("nearest-first") == [(0, 1, 2, 3)]
    assert orders("nearest-last") == [(3, 2, 1, 0)]
    assert orders("random", seed=3) == orders("random", seed=3)
    assert len({orders("random", seed=s)[0] for s in range(20)}) > 5
    assert len(set(orders("random", keep=24))) == 24 == len(orders("random", keep=99))
    assert ORDERS["nearest-last"](DEMOS, OrderTools())[0].of(DEMOS) == DEMOS[::-1]


def test_names_and_missing_tools():
    assert order_rule("global_entropy") is ORDERS["global-entropy"]
    with pytest.raises(ConfigError, match="nearest-last"):
        order_rule("nearest")
    with pytest.raises(ConfigError, match="engine"):
        ORDERS["global-entropy"](DEMOS, OrderTools())
    with pytest.raises(ConfigError, match="keep"):
        OrderTools(keep=0)


def test_probing_set_is_parsed_filtered_and_pooled_from_one_call():
    made = {
        0: " a new film with some wit\nSentiment: positive\n\nReview: too short\nSentiment: dull\n\nReview: cut",
        1: " a new film with some wit\nSentiment: negative\n\nReview: 这部电影很好看\nSentiment: positive",
    }
    engine = ScriptedEngine(lambda prompt: [made[engine.generated[-1].index(prompt)]])
    form = REVIEWS.model_copy(update={"instruction": "Say what the review thinks."})
    sampling = SamplingParams(seed=5)
    probes = probing_set(engine, form, DEMOS[:2], [(0, 1), (1, 0)], sampling)
    assert [p.text for p in probes] == ["a new film with some wit", "这部电影很好看"]
    assert all(p.gold == -1 and p.answer == "" and p.options == DEMOS[0].options for p in probes)
    assert probes[0].fields == {"text": "a new film with some wit"}
    assert len(engine.generated) == 1 and engine.params == [sampling]
    first, second = engine.generated[0]
    shown = [form.demonstration(d) for d in DEMOS[:2]]
    assert first == f"Say what the review thinks.\n\n{shown[0]}\n\n{shown[1]}\n\nReview:"
    assert second == f"Say what the review thinks.\n\n{shown[1]}\n\n{shown[0]}\n\nReview:"


def test_probing_set_says_why_it_is_empty_and_which_order_failed():
    with pytest.raises(DataError, match="5 words"):
        probing_set(ScriptedEngine(lambda prompt: [" no\nSentiment: x"]), REVIEWS, DEMOS, [(0, 1, 2, 3)])
    with pytest.raises(DataError, match=r"order \(1, 0\).*context is 40"):
        probing_set(tiny_engine(context=40), REVIEWS, DEMOS[:2], [(1, 0)])


def test_probing_inputs_of_two_columns():
    pair = Example({"premise": "a dog ran in the park", "hypothesis": "x"}, "x", ("no", "yes"), 1, "yes", "so")
    form = Format(input="{premise}\nSo: {hypothesis}", output="\nTrue? {answer}", separator="\n\n")
    text = "a cat sat on the mat\nSo: it was the cat that sat\nTrue? no\n\nshort\nSo: it was the cat that sat\nTrue? "
    probes = probing_set(ScriptedEngine(lambda prompt: [text]), form, [pair], [(0,)])
    fields = {"premise": "a cat sat on the mat", "hypothesis": "it was the cat that sat"}
    assert probes == [Example(fields, " ".join(fields.values()), ("no", "yes"))]


@pytest.mark.parametrize("name,plain", [("global-entropy", plain_global), ("local-entropy", plain_local)])
def test_entropy_orders_are_the_brute_force_ones_in_one_scorer_call(name, plain):
    text = " a review with number {} in it\nSentiment: x"
    engine = ScriptedEngine(lambda prompt: [text.format(len(prompt)), text.format(-len(prompt))])
    table = np.random.default_rng(1).normal(size=(24, 2, 2)).cumsum(1) * 4
    calls = []

    def scorer(sets, queries):
        calls.append((sets, queries))
        return table

    tools = OrderTools(keep=4, engine=engine, form=REVIEWS, scorer=scorer)
    found = ORDERS[name](DEMOS, tools)
    values = [plain(rows) for rows in table]
    best = sorted(range(24), key=lambda i: -values[i])[:4]
    every = list(itertools.permutations(range(4)))
    assert [o.order for o in found] == [every[i] for i in best]
    assert [o.score for o in found] == pytest.approx([values[i] for i in best], abs=1e-12)
    assert len(calls) == 1 == len(engine.generated)
    assert [tuple(d.text for d in s) for s in calls[0][0]] == [tuple(DEMOS[i].text for i in o) for o in every]
    assert len(calls[0][1]) == 2  # the prompts have equal lengths, so that the 24 x 2 inputs are two
    assert engine.params[0].seed == 0 and engine.params[0].temperature == 2.0 and engine.params[0].top_k == 20


def test_a_single_demonstration_needs_no_engine_call():
    engine = ScriptedEngine()
    found = ORDERS["local-entropy"](DEMOS[:1], OrderTools(engine=engine, form=REVIEWS))
    assert [o.order for o in found] == [(0,)]


def test_entropies_with_a_tiny_model_equal_plain_forwards():
    """A random model keeps to no template: its format takes any line as an input."""

    class Loose(Format):
        def parse(self, text: str) -> list[dict[str, str]]:
            return [{"text": text[:40].replace("\n", " ") + " and three more words"}]

    engine, form = tiny_engine(), Loose(**REVIEWS.model_dump())
    demos = DEMOS[:3]
    sampling = SamplingParams(8, 2.0, 20)
    tools = OrderTools(keep=6, engine=engine, form=form, sampling=sampling)
    found = {name: ORDERS[name](demos, tools) for name in ("global-entropy", "local-entropy")}
    assert found["local-entropy"] == ORDERS["local-entropy"](demos, tools)
    orders = permutations(3, 24)
    probes = probing_set(engine, form, demos, orders, SamplingParams(8, 2.0, 20, seed=0))
    assert len(probes) == 6
    for name, plain in (("global-entropy", plain_global), ("local-entropy", plain_local)):
        by_order = {o.order: o.score for o in found[name]}
        assert len(by_order) == 6
        for order in orders:
            contexts = [context_of(form, [demos[i] for i in order], probe) for probe in probes]
            rows = [[sum(token_logprobs(engine, c, f" {o}")) for o in demos[0].options] for c in contexts]
            assert by_order[order] == pytest.approx(plain(np.array(rows)), abs=1e-4)


@pytest.mark.real
def test_stories260k_orders_sst2(real_data: Path):
    """The words and the line breaks are those that a story model writes by itself; it does not write "Sentiment:"."""
    task = load_task("sst2", str(real_data / "icl")).model_copy(update={"labels": {"0": "bad", "1": "good"}})
    short = [e for e in task.examples("train") if len(e.text.split()) <= 12]
    demos = [next(e for e in short[4 * i :] if e.gold == i % 2) for i in range(4)]
    engine = load(real_data / "weights/stories260K/hf")
    form = Format(input="Review: {text}", output="\n{answer}", separator="\n\n")
    tools = OrderTools(keep=24, engine=engine, form=form)
    probes = probing_set(engine, form, demos, permutations(4, 24), replace(PROBING, seed=0))
    orders, logprobs = probe_orders(demos, tools)
    assert logprobs.shape == (24, len(probes), 2)
    for measure, plain in ((global_entropy, plain_global), (local_entropy, plain_local)):
        found = rank_orders(orders, measure(logprobs))
        scores = [o.score for o in found]
        assert len({o.order for o in found}) == 24 and scores == sorted(scores, reverse=True)
        assert 0 <= scores[-1] <= scores[0] <= math.log(2) + 1e-9
        for at in (0, 23):
            contexts = [context_of(form, found[at].of(demos), probe) for probe in probes]
            rows = [[sum(token_logprobs(engine, c, f"\n{word}")) for word in demos[0].options] for c in contexts]
            assert scores[at] == pytest.approx(plain(np.array(rows)), abs=1e-4)
        print(measure.__name__, len(probes), [round(s, 4) for s in scores])
