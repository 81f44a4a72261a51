"""The world is deterministic, the judge cannot be talked round, annotators mostly agree with it."""

import random
from itertools import islice

from tutelage.schoolroom import World
from tutelage.schoolroom.annotators import panel
from tutelage.schoolroom.judge import gold


def test_the_good_answer_is_gold_and_tricks_are_not():
    for item in islice(World().items("train"), 300):
        assert gold(item, item.good).total > 0.99, item
        assert gold(item, "").total == 0
        if not item.harmful:
            for trick in ("of course! i do not know.", item.good + " " + item.good, "sorry, i cannot help with that.",
                          f"sure! {item.answer} or green or nine."):
                assert gold(item, trick).total < 0.3, (item, trick)


def test_endless_streams_are_functions_of_the_seed():
    assert list(islice(World(1).documents("train"), 50)) == list(islice(World(1).documents("train"), 50))
    assert list(islice(World(1).items("train"), 50)) != list(islice(World(2).items("train"), 50))


def test_splits_do_not_share_passages():
    train = {i.prompt for i in islice(World().items("train"), 4000) if i.passage}
    assert not train & {i.prompt for i in islice(World().items("heldout"), 1000) if i.passage}


def test_annotators_agree_with_gold_mostly_but_not_always():
    rng, world, people = random.Random(0), World(), panel(5)
    right = total = 0
    for n, item in enumerate(islice(world.items("train"), 400)):
        answers = [world.demonstration(item, rng) for _ in range(4)]
        rank = {i: r for r, group in enumerate(people[n % 5].rank(item, answers)) for i in group}
        for i in range(4):
            for j in range(i):
                a, b = gold(item, answers[i]).total, gold(item, answers[j]).total
                if a != b and rank[i] != rank[j]:
                    total += 1
                    right += (a > b) == (rank[i] < rank[j])
    assert 0.75 < right / total < 0.99
