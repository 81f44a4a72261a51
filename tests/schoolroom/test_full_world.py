"""The full world: right answers right, wrong ones low, streams deterministic, splits apart, demonstrations mixed."""

import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.core.errors import ConfigError
from tutelage.schoolroom import Item, Lesson, World, family, lessons
from tutelage.schoolroom.judge import gold
from tutelage.schoolroom.lessons import NAMES, REGISTRY, RESERVED, THINGS
from tutelage.schoolroom.rows import gold_reward, item_from_row, prompt_rows, sft_rows

FULL = World(families="full")
TRAINED = [n for n in FULL.families if not REGISTRY[n].heldout]
HELD = [n for n in FULL.families if REGISTRY[n].heldout]
seeds = st.integers(0, 2**32)


def home(name: str) -> str:
    return "heldout_families" if REGISTRY[name].heldout else "train"


def some(name: str, n: int = 60, seed: int = 0) -> Iterator[Item]:
    rng = random.Random(seed)
    for _ in range(n):
        yield FULL.item(name, rng, home(name))


@pytest.mark.parametrize("name", FULL.families)
@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_good_is_gold_and_wrong_is_low(name: str, seed: int) -> None:
    for split in ("train", "heldout"):
        if REGISTRY[name].heldout:
            split = "heldout_families"
        item = FULL.item(name, random.Random(seed), split)
        assert gold(item, item.good).total == pytest.approx(1.0), item
        assert gold(item, item.good.upper()).correct == 1
        for wrong in item.meta["wrong"]:
            thanked = wrong if item.meta["strict"] else f"of course! {wrong}, thank you."  # which a rule may ask for
            for said in (wrong, f"sure! {wrong}.", thanked):
                assert gold(item, said).total <= 0.3, (item, said)
        assert Item(**json.loads(json.dumps(asdict(item)))) == item


@pytest.mark.parametrize("name", FULL.families)
def test_every_accepted_wording_is_right(name: str) -> None:
    for item in some(name):
        for wording in item.meta["accept"]:
            assert gold(item, f"sure! {wording}.").correct == 1, (item, wording)


@pytest.mark.parametrize("name", FULL.families)
def test_demonstrations_are_of_mixed_quality(name: str) -> None:
    rng = random.Random(1)
    scores = [gold(i, FULL.demonstration(i, rng)).total for i in some(name, 1500)]
    assert 0.54 < sum(scores) / len(scores) < 0.68
    assert 0.2 < sum(s > 0.99 for s in scores) / len(scores) < 0.4
    assert 0.12 < sum(s < 0.3 for s in scores) / len(scores) < 0.32


@pytest.mark.parametrize(
    "name", ["who", "where", "price", "colour", "shop", "story", "two_hop", "follow_up", "push_back"]
)
def test_answers_can_be_read_off_the_passage(name: str) -> None:
    """An independent reader finds the answer in the last sentence about the subject."""
    patterns = {
        r"who has the (\w+)": r"(\w+) (?:has|found) the {0}|gave the {0} to (\w+)",
        r"where is the (\w+)": r"(\w+) has the {0}",
        r"where is (\w+)": r"{0} (?:is in|went to) the (\w+)",
        r"what does the (\w+) cost": r"the {0} costs (\w+) coins",
        r"what colour is the (\w+)": r"the {0} is (\w+)",
        r"which shop sells the (\w+)": r"the (\w+) sells the {0}",
    }
    for item in some(name, 150):
        text = item.prompt_text
        asked = text if name == "push_back" else text.rsplit(".", 1)[-1]
        question, pattern = next((m, p) for q, p in patterns.items() if (m := re.search(q, asked)))
        told = " ".join(re.findall(r"[^.?!|]+\.", text))  # sentences, not questions
        found = re.findall(pattern.format(question[1]), told)
        last = found[-1] if isinstance(found[-1], str) else "".join(found[-1])
        if name == "two_hop":
            last = re.findall(rf"{last} is in the (\w+)", text)[0]
        assert last == item.answer, item


def test_what_is_not_stated_is_in_no_sentence_of_the_passage() -> None:
    for item in some("not_stated", 300):
        subject = re.search(r"(\w+)(?: cost)?\?$", item.meta["question"])
        assert subject and not re.search(rf"\b{subject[1]}\b", item.passage), item


def test_worked_sums_are_true_and_a_false_step_costs() -> None:
    for item in some("steps", 200):
        expression = re.search(r"work out (.*) step by", item.prompt_text)
        assert expression
        assert eval(expression[1].replace("plus", "+").replace("minus", "-")) == int(item.answer)
        slips = re.sub(r"is (\d+),", lambda m: f"is {int(m[1]) + 1},", item.good)
        assert gold(item, slips).total < gold(item, item.good).total
        assert gold(item, f"sure! {item.answer}.").correct == 1


def test_comparisons_name_the_answer_that_gold_prefers() -> None:
    """`choose` agrees with the judge about answers to the question that it quotes."""
    checked = 0
    for item in some("choose", 400):
        one, two = re.findall(r" a: (.*) b: (.*)$", item.passage)[0]
        better, worse = (one, two) if item.answer == "a" else (two, one)
        assert not re.search("fool|go away|may be", better)
        checked += bool(re.search("fool|go away|may be", worse)) or better != worse
    assert checked == 400


def test_streams_are_functions_of_seed_split_and_stream() -> None:
    def take(world: World, split: str, stream: int) -> list[str]:
        return [i.prompt_text for i in islice(world.items(split, stream), 40)]

    base = take(World(3, "full"), "train", 1)
    assert base == take(World(3, "full"), "train", 1)
    assert len({tuple(x) for x in (base, take(World(4, "full"), "train", 1), take(World(3, "full"), "train", 2),
                                   take(World(3, "full"), "heldout", 1))}) == 4
    for phase in (0.0, 1.0):
        documents = list(islice(World(3, "full").documents("train", 1, phase), 60))
        assert documents == list(islice(World(3, "full").documents("train", 1, phase), 60))
        assert all(d == d.strip() and d for d in documents)


def test_held_out_prompts_occur_in_no_training_row_or_document() -> None:
    rows = {i.prompt_text for i in islice(FULL.items("train"), 15_000)}
    read = "\n".join(d.replace("question: ", "").replace("answer: ", "")
                     for phase in (0.0, 1.0) for d in islice(FULL.documents("train", 3, phase), 10_000))
    held = [i for s in ("heldout", "heldout_families") for i in islice(FULL.items(s), 1200)]
    assert not [i for i in held if i.prompt_text in rows]
    # "the cup is red. who has the hat?" may end a longer passage that does say who: another question, with an answer
    leaked = [i.prompt for i in held if isinstance(i.prompt, str) and i.family != "not_stated" and i.prompt in read]
    assert not leaked


def test_reserved_people_and_things_are_read_about_but_never_instructed() -> None:
    strangers = {*NAMES[-RESERVED:], *THINGS[-RESERVED:]}
    trained = {w for i in islice(FULL.items("train"), 5000) for w in re.findall(r"\w+", i.prompt_text)}
    held = {w for i in islice(FULL.items("heldout"), 3000) for w in re.findall(r"\w+", i.prompt_text)}
    read = {w for d in islice(FULL.documents("train"), 5000) for w in re.findall(r"\w+", d)}
    known = {"boot", "net"}  # words of "how do i tie a boot?" and of "use a net" as well
    assert len(strangers) == 2 * RESERVED and not (strangers - known) & trained
    assert strangers <= held and strangers <= read


def test_held_out_families_are_never_instructed() -> None:
    assert {i.family for i in islice(FULL.items("train"), 3000)} == set(TRAINED)
    assert {i.family for i in islice(FULL.items("heldout"), 3000)} == set(TRAINED)
    assert {i.family for i in islice(FULL.items("heldout_families"), 400)} == set(HELD)
    assert len(TRAINED) >= 30 and len(HELD) >= 4


def test_dialogues_make_rows_of_several_turns_that_the_judge_reads_back() -> None:
    turns = defaultdict(int)
    for row in islice(sft_rows(FULL, 600, "train", 3), 600):
        roles = [m["role"] for m in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        turns[len(roles)] += 1
    assert turns[2] > 400 and turns[4] > 20 and turns[6] > 0
    for row in prompt_rows(FULL, 300, "heldout", 2):
        again = json.loads(json.dumps(row))
        good = item_from_row(again).good
        assert gold_reward([again["prompt"]], [good], item=[again["item"]]) == [pytest.approx(1.0)]


def test_probe_asks_in_the_words_of_the_documents() -> None:
    probe = FULL.probe(100)
    assert len(probe) == 100 and probe == FULL.probe(100) and FULL.probe(20, stream=8) != probe[:20]
    assert all(text.endswith("answer:") and "question:" in text and answer for text, answer in probe)


def test_chosen_families_and_errors_that_name_them() -> None:
    assert {i.family for i in islice(World(families="full:who, critique").items("train"), 50)} == {"who", "critique"}
    assert World(families=["who", "critique"]).families == ["who", "critique"]
    with pytest.raises(ConfigError, match="no family 'whom'"):
        World(families="full:whom")
    with pytest.raises(ConfigError, match="expected \"demo\", \"full\""):
        World(families="ful")
    with pytest.raises(ConfigError, match="'test': expected one of train, heldout"):
        next(FULL.items("test"))
    with pytest.raises(ConfigError, match="belongs to split 'heldout_families'"):
        next(World(families="full:critique").items("heldout_families"))


@pytest.fixture
def registry() -> Iterator[None]:
    """Families registered by a test are gone after it."""
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


def test_a_family_is_added_in_twenty_lines(registry: None) -> None:
    @family("shape")
    def shape(rng, cast):
        thing, side = rng.choice(cast.things), rng.choice(("round", "square", "flat"))
        wrong = [s for s in ("round", "square", "flat") if s != side]
        return Lesson(passage=f"the {thing} is {side}.", question=f"what shape is the {thing}?", answer=side,
                      wrong=wrong, accept=[f"the {thing} is {side}"], key=f"the {thing} is {side}")

    world, rng = World(families="full:shape,who"), random.Random(0)
    items = [i for i in islice(world.items("train"), 200) if i.family == "shape"]
    assert len(items) > 60
    assert all(gold(i, i.good).total > 0.99 and gold(i, f"sure! {i.meta['wrong'][0]}.").total < 0.2 for i in items)
    assert 0.4 < sum(gold(i, world.demonstration(i, rng)).total for i in items) / len(items) < 0.75
    held = {i.prompt for i in islice(world.items("heldout"), 200)}
    assert not held & {i.prompt for i in items}
    assert any("what shape" in d for d in islice(world.documents("train"), 100))
    assert any("what shape" in text for text, _ in world.probe(10))


def test_a_family_without_enough_questions_or_with_a_taken_name_is_refused(registry: None) -> None:
    @family("constant")
    def constant(rng, cast):
        return Lesson("what is the capital of the moon?", "none")

    with pytest.raises(ConfigError, match="'constant' gave no lesson for split"):
        list(islice(World(families="full:constant").items("heldout"), 1))
        list(islice(World(families="full:constant").items("train"), 1))
    with pytest.raises(ConfigError, match="there is a family 'who' already"):
        family("who")(constant)
    assert lessons.REGISTRY["who"].make is not constant


def test_the_page_lists_every_family_and_its_example_runs(registry: None, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/schoolroom.md").read_text()
    listed = re.findall(r"^\| `(\w+)`( \(held out\))? \|", page.split("## Families")[1], re.M)
    assert [(n, bool(held)) for n, held in listed] == [(n, REGISTRY[n].heldout) for n in FULL.families]
    file = tmp_path / "shapes.py"
    file.write_text(re.findall(r"```python\n(.*?)```", page, re.S)[0])
    world = World(families=f"{file}:shape,who")
    assert world.families == ["shape", "who"]
    assert {i.family for i in islice(world.items("train"), 40)} == {"shape", "who"}
    assert World(families=str(file)).families[-1] == "shape"


def test_a_broken_file_of_families_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file .*missing.py"):
        World(families=str(tmp_path / "missing.py"))
    (tmp_path / "bad.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match="bad.py: ZeroDivisionError"):
        World(families=str(tmp_path / "bad.py"))
