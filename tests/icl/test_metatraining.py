"""Training sequences: the very prompts that are scored, the loss where it belongs, draws that a resume repeats."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.core.errors import ConfigError, DataError
from tutelage.icl.encode import Encoder
from tutelage.icl.examples import Example
from tutelage.icl.metatraining import MARKERS, Selfmade, Sequences, Tasks, encode, mean_of_sequences, render
from tutelage.icl.prompts import MINIMAL, Format, Prompter
from tutelage.icl.tasks import WORLD_FORMAT
from tutelage.text.selfsupervised import SelfSupervised

REVIEW = Format(
    instruction="Judge the films.", input="Review: {text}", output="\nSentiment: {answer}.", separator="\n\n",
    channel_input="Sentiment: {answer}\nReview: ",
)  # fmt: skip
OPTIONS = ("positive", "negative", "so so")
WORDS = st.lists(st.sampled_from("a fine dull film play é 好 it's 12".split()), min_size=1, max_size=5).map(" ".join)
EXAMPLES = st.lists(st.tuples(WORDS, st.sampled_from(OPTIONS)), min_size=1, max_size=4)
FORMS = st.sampled_from([MINIMAL, MARKERS, WORLD_FORMAT, REVIEW])


def example(text, answer):
    return Example({"text": text}, text, OPTIONS, OPTIONS.index(answer), answer)


@settings(max_examples=80, deadline=None)
@given(EXAMPLES, FORMS, st.sampled_from(["direct", "channel"]))
def test_a_sequence_is_the_scored_prompt(engine, made, form, direction):
    examples = [example(*pair) for pair in made]
    prompter = Prompter(form, direction)
    text, spans = render(prompter, examples)
    ids, labels = encode(engine.tokenizer, text, spans[-1:])
    pairs = Encoder(engine, prompter).pairs([examples[:-1]], [examples[-1]], [(0, 0)]).pairs[0]
    context, continuation = pairs[examples[-1].gold]
    assert ids == context + continuation
    assert labels == [-100] * len(context) + continuation


@settings(max_examples=40, deadline=None)
@given(EXAMPLES, FORMS)
def test_every_output_is_predicted_and_nothing_else(engine, made, form):
    examples = [example(*pair) for pair in made]
    text, spans = render(Prompter(form), examples)
    assert [text[a:b].lstrip() for a, b in spans] == [e.answer for e in examples]
    ids, labels = encode(engine.tokenizer, text, spans)
    said = engine.tokenizer.decode([label for label in labels if label != -100])
    assert "".join(said.split()) == "".join("".join(e.answer for e in examples).split())
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))


def pools(sizes=(3, 30)):
    made = [[example(f"task {t} number {i}", OPTIONS[i % 3]) for i in range(size)] for t, size in enumerate(sizes)]
    return Tasks([(MINIMAL, pool) for pool in made])


def test_tasks_are_drawn_uniformly_whatever_their_size():
    draw, rng = pools(), np.random.default_rng(0)
    found = [draw(rng, 3)[1] for _ in range(600)]
    assert all(len({e.text for e in examples}) == 3 for examples in found)  # no example twice, the query none of them
    assert all(len({e.text[:6] for e in examples}) == 1 for examples in found)  # one task a sequence
    assert 250 < sum(examples[0].text.startswith("task 0") for examples in found) < 350


def loader(engine, tokenizer, **more):
    tokenizer.pad_token = tokenizer.eos_token
    return Sequences(pools(), tokenizer, **{"shots": 2, "batch_size": 4, "max_length": 100, "seed": 5, **more})


def test_a_resumed_loader_goes_on_with_the_same_batches(engine, tokenizer):
    whole = loader(engine, tokenizer)
    batches = [next(whole) for _ in range(4)]
    first = loader(engine, tokenizer)
    next(first), next(first)
    again = loader(engine, tokenizer)
    again.load_state_dict(first.state_dict())
    for batch in batches[2:]:
        other = next(again)
        assert all(torch.equal(batch[key], other[key]) for key in batch)
    assert again.state_dict() == whole.state_dict()
    with pytest.raises(ConfigError, match="the saved state has shots=2"):
        loader(engine, tokenizer, shots=1).load_state_dict(first.state_dict())


def test_long_sequences_lose_demonstrations_and_endless_queries_are_refused(engine, tokenizer):
    whole = loader(engine, tokenizer).row(0)
    short = loader(engine, tokenizer, max_length=len(whole["input_ids"]) - 1)
    row = short.row(0)
    assert short.dropped >= 1 and row["input_ids"] == whole["input_ids"][-len(row["input_ids"]) :]
    assert row["labels"] == whole["labels"][-len(row["input_ids"]) :]
    with pytest.raises(DataError, match="none of 50 examples fits into max_length=3"):
        loader(engine, tokenizer, max_length=3).row(0)


def test_the_loss_is_the_mean_of_each_sequence(engine, tokenizer):
    batch = next(loader(engine, tokenizer, every=True, channel=True))
    total, metrics = mean_of_sequences(engine.model, batch)
    expected = 0.0
    for ids, labels, real in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        size = int(real.sum())
        out = engine.model(input_ids=ids[None, :size], labels=labels[None, :size])  # transformers' own mean
        expected += float(out.loss)
    assert float(total) == pytest.approx(expected, rel=1e-5) and metrics["count"] == 4


def test_self_supervised_sequences_are_of_one_objective(tokenizer):
    text = SelfSupervised([f"Film {i} is in the town. It is a dull film. We like the play {i}." for i in range(5)], "t")
    draw = Selfmade(text, ("next_sentence", "last_phrase"), MARKERS)
    kinds = set()
    for seed in range(20):
        form, examples = draw(np.random.default_rng(seed), 3)
        asked = {"Question:" in e.text for e in examples}
        assert form is MARKERS and len(asked) == 1
        kinds |= asked
    assert kinds == {True, False}
