"""The learned retriever: what it mines, that it learns, what it saves."""

import math
import re

import numpy as np
import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel

from tests.engine.test_local_engine import make_model, make_tokenizer
from tests.icl.selection_helpers import REVIEWS, FakeEngine, open_question, review, sentences
from tutelage.core.errors import ConfigError, DataError
from tutelage.engine.local import LocalEngine
from tutelage.icl.selection import SELECTORS, SelectionContext
from tutelage.icl.selection.epr import EprOptions, Mined, fit, mine
from tutelage.icl.selection.lexical import bm25
from tutelage.icl.selection.retriever import Retriever
from tutelage.loss.contrastive import info_nce

KINDS = 8


def keyed(count, seed):
    """Questions with one key word among much chatter, all with the same answer, so that BM25 is no guide."""
    rng = np.random.default_rng(seed)
    return [
        open_question(" ".join(rng.permutation([f"key{rng.integers(KINDS)}", *sentence.split()])), "yes")
        for sentence in sentences(count, seed, vocabulary=60, longest=9)
    ]


def key(text):
    return int(re.search(r"key(\d+)", text)[1])


def partner(context, continuation):
    """The answer is likely if the demonstration's key is the one after the question's key: no word is shared."""
    shown, asked = (key(part) for part in context.split("\n\n"))
    return [-0.1 if shown == (asked + 1) % KINDS else -5.0]


def useful(pool, queries, chosen):
    """Share of the chosen that help their query."""
    hits = [(key(pool[i].text) - key(q.text)) % KINDS == 1 for q, one in zip(queries, chosen) for i in one]
    return sum(hits) / len(hits)


def test_info_nce_by_hand():
    scores = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 3.0]], requires_grad=True)
    loss, metrics = info_nce(scores, torch.tensor([0, 1]))
    by_hand = [-2 + math.log(math.exp(2) + 1 + math.e), -1 + math.log(1 + math.e + math.exp(3))]
    assert loss.item() == pytest.approx(sum(by_hand) / 2) and metrics["accuracy"] == 0.5
    barred = torch.tensor([[True, False, False], [False, False, True]])  # a query's own passage is never left out
    loss, metrics = info_nce(scores, torch.tensor([0, 1]), barred)
    assert loss.item() == pytest.approx((by_hand[0] - 1 + math.log(1 + math.e)) / 2) and metrics["accuracy"] == 1
    loss.backward()
    assert torch.isfinite(scores.grad).all() and scores.grad[1, 2] == 0


def test_mining_scores_all_candidates_in_one_call_and_keeps_both_ends():
    pool = [review(t, i % 2) for i, t in enumerate(sentences(30, seed=1))]
    engine, form = FakeEngine(), REVIEWS
    options = EprOptions(examples=7, candidates=12, ends=3, candidates_by="input")
    mined = mine(pool, options, SelectionContext(engine, form), seed=5)
    assert len(mined) == 7 and len(engine.calls) == 1
    pairs = engine.calls[0][1]
    assert len(pairs) == 7 * 12
    lexical = bm25([e.text for e in pool], [e.text for e in pool])
    shown = [form.demonstration(e) for e in pool]
    for n, one in enumerate(mined):
        x, asked = pool[one.example], pairs[12 * n : 12 * n + 12]
        assert {continuation for _, continuation in asked} == {x.answer}
        assert all(context.endswith("\n\n" + form.query(x)) for context, _ in asked)
        candidates = [shown.index(context.split("\n\n")[0]) for context, _ in asked]
        assert one.example not in candidates and len(set(candidates)) == 12
        left = set(range(30)) - {one.example, *candidates}
        assert min(lexical[one.example, candidates]) >= max(lexical[one.example, list(left)])
        values = {i: sum(engine.tokens(*pair)) for i, pair in zip(candidates, asked)}
        ranked = sorted(values, key=values.get, reverse=True)
        assert list(one.positives) == ranked[:3] and list(one.negatives) == ranked[-3:]


def test_candidates_by_the_answer_prefer_the_same_answer():
    pool = [review(t, i % 2) for i, t in enumerate(sentences(40, seed=1))]
    mined = mine(pool, EprOptions(candidates=10), SelectionContext(FakeEngine(), REVIEWS), seed=5)
    for one in mined:
        labels = {pool[i].gold for i in (*one.positives, *one.negatives)}
        assert labels == {pool[one.example].gold}


@pytest.mark.parametrize("hidden", [0, 32])
def test_it_learns_which_demonstration_helps(hidden):
    pool, queries = keyed(160, seed=1), keyed(40, seed=2)
    engine = FakeEngine(tokens=partner)
    options = {"hidden": hidden, "candidates": 50}
    chosen = SELECTORS["epr"](pool, queries, 4, SelectionContext(engine, REVIEWS, options=options), 0)
    assert useful(pool, queries, chosen) > 0.8  # chance: 1 in 8
    near = SELECTORS["knn"](pool, queries, 4, SelectionContext(), 0)
    assert useful(pool, queries, near) < 0.3


def test_untrained_towers_are_word_similarity():
    pool = [review(t) for t in sentences(30, seed=3)]
    made = Retriever.create("tfidf", [e.text for e in pool], 512, 0, 0, SelectionContext())
    a, b = (made.vectors([e.text for e in pool], side) for side in ("query", "passage"))
    np.testing.assert_array_equal(a, b)
    words = made.inputs([e.text for e in pool])
    assert np.abs(a @ b.T - (words @ words.T).toarray()).max() < 0.3


def test_a_saved_retriever_selects_as_the_trained_one(tmp_path):
    pool, queries = keyed(40, seed=1), keyed(10, seed=2)
    engine = FakeEngine(tokens=partner)
    folder = str(tmp_path / "retriever")
    trained = SELECTORS["epr"](
        pool, queries, 4, SelectionContext(engine, REVIEWS, options={"save": folder, "epochs": 3}), 0
    )
    loaded = SelectionContext(None, REVIEWS, options={"retriever": folder})
    assert SELECTORS["epr"](pool, queries, 4, loaded, 0) == trained
    assert sorted(p.name for p in (tmp_path / "retriever").iterdir()) == ["retriever.json", "retriever.safetensors"]
    (tmp_path / "retriever" / "retriever.safetensors").write_bytes(b"broken")
    with pytest.raises(DataError, match="cannot be read.*train it again"):
        SELECTORS["epr"](pool, queries, 4, loaded, 0)
    missing = SelectionContext(None, REVIEWS, options={"retriever": str(tmp_path / "none")})
    with pytest.raises(DataError, match="no retriever there"):
        SELECTORS["epr"](pool, queries, 4, missing, 0)
    both = SelectionContext(None, REVIEWS, options={"retriever": folder, "save": folder})
    with pytest.raises(ConfigError, match="give one of them"):
        SELECTORS["epr"](pool, queries, 4, both, 0)


def test_frozen_states_of_the_local_model(tmp_path):
    tokenizer = make_tokenizer()
    engine = LocalEngine(make_model("llama"), tokenizer)
    pool = [review(t, i % 2) for i, t in enumerate(("the cat sat", "one two", "do you like tea", "the dog", "a mat"))]
    queries = [review("the mat"), review("yes tea")]
    before = [p.clone() for p in engine.model.parameters()]
    folder = str(tmp_path / "r")
    options = {"encoder": "hidden", "epochs": 3, "dim": 8, "hidden": 16, "save": folder}
    trained = SELECTORS["epr"](pool, queries, 2, SelectionContext(engine, REVIEWS, options=options), 0)
    assert all(torch.equal(a, b) for a, b in zip(before, engine.model.parameters()))
    loaded = SelectionContext(engine, REVIEWS, options={"retriever": folder})
    assert SELECTORS["epr"](pool, queries, 2, loaded, 0) == trained
    with pytest.raises(ConfigError, match="needs a local model"):
        SELECTORS["epr"](pool, queries, 2, SelectionContext(FakeEngine(), REVIEWS, options={"retriever": folder}), 0)


def test_a_hugging_face_encoder_is_trained_and_saved(tmp_path):
    tokenizer = make_tokenizer()
    config = BertConfig(
        vocab_size=320, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, pad_token_id=0
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    pool, queries = keyed(30, seed=1), keyed(5, seed=2)
    options = {"encoder": str(tmp_path / "bert"), "epochs": 2, "save": str(tmp_path / "r"), "lr": 1e-3}
    context = SelectionContext(FakeEngine(tokens=partner), REVIEWS, options=options)
    trained = SELECTORS["epr"](pool, queries, 3, context, 0)
    loaded = SelectionContext(None, REVIEWS, options={"retriever": str(tmp_path / "r")})
    assert SELECTORS["epr"](pool, queries, 3, loaded, 0) == trained
    tower = Retriever.load(tmp_path / "r", SelectionContext()).towers["query"].model
    original = AutoModel.from_pretrained(tmp_path / "bert")
    assert not torch.equal(tower.embeddings.word_embeddings.weight, original.embeddings.word_embeddings.weight)


def test_training_leaves_the_callers_generators_alone():
    pool = [review(t) for t in sentences(20, seed=1)]
    texts = [e.text for e in pool]
    mined = [Mined(i, ((i + 1) % 20,), ((i + 2) % 20,)) for i in range(20)]
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    made = Retriever.create("tfidf", texts, 8, 0, 0, SelectionContext())
    losses = fit(made, texts, texts, mined, EprOptions(epochs=20, batch_size=6), 0)
    assert torch.equal(torch.rand(1), expected) and losses[-1] < losses[0] / 2


def test_too_few_examples_or_an_answer_that_is_empty():
    with pytest.raises(DataError, match="at least 3"):
        SELECTORS["epr"]([review("a"), review("b")], [review("c")], 1, SelectionContext(FakeEngine(), REVIEWS), 0)
    pool = [open_question(t, "") for t in sentences(5, seed=1)]
    with pytest.raises(DataError, match="learns from answers, and that of .* is empty"):
        SELECTORS["epr"](pool, [review("c")], 1, SelectionContext(FakeEngine(), REVIEWS), 0)


def test_a_querys_own_answer_is_never_learnt_from():
    pool = [review(t, i % 2) for i, t in enumerate(sentences(20, seed=1))]
    engine = FakeEngine()
    SELECTORS["epr"](pool, pool[:5], 2, SelectionContext(engine, REVIEWS, options={"epochs": 1}), 0)
    asked = {context.split("\n\n")[-1] for context, _ in engine.calls[0][1]}
    assert len(asked) == 15 and not asked & {REVIEWS.query(e) for e in pool[:5]}


def test_what_is_too_long_is_neither_candidate_nor_learnt_from(caplog):
    tokenizer = make_tokenizer()
    engine = LocalEngine(make_model("llama"), tokenizer)
    short = [review(t, i % 2) for i, t in enumerate(("the cat", "one two", "tea", "the dog", "a mat", "cat"))]
    pool = [review("the cat sat " * 30), *short]
    options = EprOptions(candidates_by="input")
    mined = mine(pool, options, SelectionContext(engine, REVIEWS), seed=0)
    assert {one.example for one in mined} == set(range(1, 7))
    assert all(0 not in (*one.positives, *one.negatives) for one in mined)
    assert "1 demonstrations and 1 queries are too long" in caplog.text
    for one in mined:  # the engine's own numbers, one prompt at a time
        values = {}
        for j in (*one.positives, *one.negatives):
            text = f"{REVIEWS.demonstration(pool[j])}\n\n{REVIEWS.query(pool[one.example])}"
            values[j] = engine.score([(text, pool[one.example].answer)])[0].logprob
        assert min(values[j] for j in one.positives) >= max(values[j] for j in one.negatives) - 1e-4
