"""Random, fixed, nearest neighbours, perplexity; the rules that all selectors share; bad input."""

import numpy as np
import pytest
import torch

from tests.engine.test_local_engine import make_model, make_tokenizer
from tests.icl.selection_helpers import REVIEWS, FakeEngine, FakeScorer, open_question, review, sentences
from tutelage.core.errors import ConfigError, DataError
from tutelage.engine.local import LocalEngine
from tutelage.engine.remote import RemoteEngine
from tutelage.icl.selection import SELECTORS, SelectionContext, demonstrations
from tutelage.icl.selection.embed import hidden_states, sentence_vectors, similarity

POOL = [review(text, i % 2) for i, text in enumerate(sentences(40, seed=5))]
QUERIES = [review(text, i % 2) for i, text in enumerate(sentences(52, seed=6)[:9])]
POOL = [e for e in POOL if e.text not in {q.text for q in QUERIES}]


def context(**options):
    return SelectionContext(FakeEngine(), REVIEWS, FakeScorer(), options)


def select(name, shots=4, pool=POOL, queries=QUERIES, seed=0, **options):
    return SELECTORS[name](pool, queries, shots, context(**options), seed)


SMALL = {"epr": {"epochs": 2, "candidates": 6}, "vote_k": {"budget": 12}}


@pytest.fixture(scope="module")
def engine():
    return LocalEngine(make_model("llama"), make_tokenizer())


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_every_selector_gives_distinct_demonstrations_and_obeys_its_seed(name):
    chosen = select(name, **SMALL.get(name, {}))
    assert len(chosen) == len(QUERIES)
    assert chosen == select(name, **SMALL.get(name, {}))
    shown = demonstrations(POOL, chosen)
    for query, one in zip(QUERIES, shown):
        assert len(one) == 4 == len({e.text for e in one})
        assert query.text not in {e.text for e in one}
        assert all(e.options == query.options and e.answer == e.options[e.gold] for e in one)


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_no_shots_and_no_queries(name):
    assert select(name, shots=0, **SMALL.get(name, {})) == [[] for _ in QUERIES]
    assert select(name, queries=[], **SMALL.get(name, {})) == []


@pytest.mark.parametrize("name", sorted(set(SELECTORS) - {"generated"}))
def test_more_shots_than_the_pool_holds(name):
    with pytest.raises(DataError, match="shots=6"):
        select(name, shots=6, pool=POOL[:5], **SMALL.get(name, {}))


@pytest.mark.parametrize("name", sorted(set(SELECTORS) - {"generated"}))
def test_copies_are_passed_over_and_a_query_never_sees_itself(name):
    pool = [*POOL[:5], POOL[0], POOL[1], *QUERIES[:2]]
    queries = QUERIES[1:3]
    for query, one in zip(queries, select(name, pool=pool, queries=queries, **SMALL.get(name, {}))):
        assert len({pool[i].text for i in one}) == 4 and not {5, 6} & set(one)
        assert query.text not in {pool[i].text for i in one}
    with pytest.raises(DataError, match="lower shots="):
        select(name, pool=[POOL[0]] * 9, **SMALL.get(name, {}) | ({"budget": 9} if name == "vote_k" else {}))


@pytest.mark.parametrize("name", ["knn", "dpp", "vote_k", "mdl", "epr", "perplexity"])
def test_an_empty_text_is_named(name):
    with pytest.raises(DataError, match=r"pool\[1\]: the text is empty"):
        select(name, pool=[POOL[0], review(" "), *POOL[1:]])
    with pytest.raises(DataError, match=r"queries\[0\]: the text is empty"):
        select(name, queries=[review("")])


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_options_are_checked(name):
    with pytest.raises(ConfigError, match=f"select={name}.*bugdet"):
        select(name, bugdet=3)
    with pytest.raises(ConfigError, match="shots"):
        select(name, shots=-1, **SMALL.get(name, {}))


@pytest.mark.parametrize(
    "name, missing", [
        ("perplexity", "engine="), ("generated", "engine="), ("vote_k", "engine="), ("epr", "format="),
        ("information", "scorer="), ("mdl", "scorer="),
    ],
)  # fmt: skip
def test_what_a_method_needs_is_named(name, missing):
    with pytest.raises(ConfigError, match=missing):
        SELECTORS[name](POOL, QUERIES, 4, SelectionContext(options=SMALL.get(name, {})), 0)


def test_random_is_one_set_unless_asked_and_balanced_if_asked():
    one = select("random")
    assert all(chosen == one[0] for chosen in one) and one[0] != select("random", seed=1)[0]
    each = select("random", per_query=True)
    assert len({tuple(chosen) for chosen in each}) == len(QUERIES)
    for chosen in select("random", shots=6, balanced=True, per_query=True):
        assert sum(POOL[i].gold for i in chosen) == 3
    odd = [sum(POOL[i].gold for i in one) for one in select("random", shots=5, balanced=True, per_query=True)]
    assert set(odd) == {2, 3}
    rare = [review(e.text, int(i == 0)) for i, e in enumerate(POOL)]
    with pytest.raises(DataError, match="2 examples of label 'positive' and the pool has 1"):
        select("random", pool=rare, balanced=True)
    with pytest.raises(DataError, match="same number of options"):
        select("random", pool=[open_question(e.text, "x") for e in POOL], balanced=True)


def test_random_draws_every_example_alike():
    counts = np.zeros(len(POOL))
    for seed in range(600):
        counts[select("random", queries=QUERIES[:1], seed=seed)[0]] += 1
    expected = 600 * 4 / len(POOL)
    assert np.abs(counts - expected).max() < 4.5 * np.sqrt(expected)


def test_fixed_takes_the_first_or_the_named():
    assert select("fixed") == [[0, 1, 2, 3]] * len(QUERIES)
    assert select("fixed", shots=2, indices=[7, 3, 5]) == [[7, 3]] * len(QUERIES)
    for indices, words in (([7, 7, 1, 2], "twice"), ([1, 2], "names 2"), ([0, 1, 2, 999], "999")):
        with pytest.raises(ConfigError, match=words):
            select("fixed", indices=indices)


@pytest.mark.parametrize("options", [{}, {"by": "tfidf"}, {"by": "tfidf", "similarity": "euclidean"}])
def test_knn_finds_the_sentence_with_the_same_words(options):
    pool = [review(t) for t in ("a dull film", "the acting was superb indeed", "superb acting", "rain fell all day")]
    chosen = select("knn", shots=2, pool=pool, queries=[review("superb acting, really superb")], **options)
    assert chosen == [[2, 1]]


def test_knn_ties_go_to_the_lower_index():
    assert select("knn", shots=3, queries=[review("nothing shared")]) == [[0, 1, 2]]


def test_bm25_has_no_other_measure_and_gives_no_vectors():
    with pytest.raises(ConfigError, match="leave similarity= out"):
        select("knn", similarity="euclidean")
    with pytest.raises(ConfigError, match="no vectors"):
        select("dpp", by="bm25")


def test_similarities_are_numpys():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 7)), rng.normal(size=(6, 7))
    b[2] = 0
    distance = np.linalg.norm(a[:, None] - b[None], axis=-1)
    np.testing.assert_allclose(similarity(a, b, "euclidean"), -distance, atol=1e-7)
    cosine = similarity(a, b, "cosine")
    assert cosine[0, 0] == pytest.approx(a[0] @ b[0] / np.linalg.norm(a[0]) / np.linalg.norm(b[0]))
    assert (cosine[:, 2] == 0).all()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_hidden_states_are_the_mean_of_the_last_layer(family):
    tokenizer = make_tokenizer()
    engine = LocalEngine(make_model(family), tokenizer)
    texts = ["the cat sat", "do you like tea? yes", "one", "the dog ran away and the cat sat on the mat"]
    found = hidden_states(engine, texts, batch_tokens=24)
    for text, vector in zip(texts, found):
        ids = torch.tensor([engine.encode(text)])
        with torch.no_grad():
            states = engine.model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        np.testing.assert_allclose(vector, states[0].mean(0).numpy(), atol=1e-5)
    assert hidden_states(engine, []).shape == (0, found.shape[1])


def test_hidden_states_of_long_texts_are_cut_and_said(engine, caplog):
    limit = engine.context_length
    long = " ".join(["the cat"] * limit)
    found = hidden_states(engine, [long, "tea"])
    assert np.isfinite(found).all() and "1 of 2 texts are longer" in caplog.text


def test_knn_by_hidden_states_and_its_need_of_a_local_model(engine):
    pool = [review(t) for t in ("the cat sat on the mat", "do you like tea? yes", "one two")]
    local = SelectionContext(engine, options={"by": "hidden"})
    assert SELECTORS["knn"](pool, [review("the cat sat on a mat")], 1, local, 0) == [[0]]
    remote = SelectionContext(RemoteEngine("http://127.0.0.1:9/v1"), options={"by": "hidden"})
    with pytest.raises(ConfigError, match="needs a local model, and this engine is RemoteEngine"):
        SELECTORS["knn"](pool, QUERIES, 1, remote, 0)


def test_sentence_transformers_absent_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(ConfigError, match="pip install sentence-transformers"):
        select("knn", by="sentence")


@pytest.mark.parametrize("of", ["demonstration", "input"])
def test_perplexity_is_the_mean_over_tokens(engine, of):
    pool = [review(t, i % 2) for i, t in enumerate(("the cat sat on the mat", "tea tea", "one two", "zq qz xx"))]
    form = REVIEWS
    chosen = SELECTORS["perplexity"](pool, QUERIES[:1], 4, SelectionContext(engine, form, options={"of": of}), 0)[0]
    means = []
    for e in pool:
        ids = torch.tensor([[1, *engine.encode(form.demonstration(e) if of == "demonstration" else form.query(e))]])
        with torch.no_grad():
            logits = engine.model(input_ids=ids).logits[0, :-1]
        means.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item())
    assert chosen == list(np.argsort(means))


def test_what_is_longer_than_the_context_is_left_out_and_said(engine, caplog):
    long = review("the cat " * engine.context_length)
    context = SelectionContext(engine, REVIEWS)
    pool = [long, *(review(t) for t in ("one two", "tea", "cat"))]
    for one in SELECTORS["perplexity"](pool, QUERIES, 3, context, 0):
        assert sorted(one) == [1, 2, 3]
    assert "1 of 4 cannot be scored and are left out" in caplog.text and "context is 64" in caplog.text
    with pytest.raises(DataError, match="shots=4, but query 0 has 3"):
        SELECTORS["perplexity"](pool, QUERIES, 4, context, 0)
    with pytest.raises(DataError, match="none of 2 can be scored.*context is 64"):
        SELECTORS["perplexity"]([long, review(long.text + "sat")], QUERIES, 1, context, 0)


def test_a_sentence_transformers_folder_is_loaded_and_compared(tmp_path, monkeypatch):
    """A folder as sentence-transformers saves it (a tiny random BERT, mean pooling), against the same model by hand."""
    library = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer import modules
    from transformers import AutoModel, BertConfig, BertModel, BertTokenizerFast

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({w for e in POOL for w in e.text.lower().split()})]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    bert = BertModel(
        BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=32,
        )
    ).eval()  # fmt: skip
    bert.save_pretrained(tmp_path / "bert")
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    word = modules.Transformer(str(tmp_path / "bert"), max_seq_length=32)
    library.SentenceTransformer(modules=[word, modules.Pooling(16)], device="cpu").save(str(tmp_path / "encoder"))

    found = sentence_vectors([e.text for e in POOL], str(tmp_path / "encoder"))
    tokenizer = BertTokenizerFast.from_pretrained(tmp_path / "bert")
    plain = AutoModel.from_pretrained(tmp_path / "bert").eval()
    with torch.no_grad():
        means = [plain(**tokenizer(e.text, return_tensors="pt")).last_hidden_state[0].mean(0).numpy() for e in POOL]
    np.testing.assert_allclose(found, np.stack(means), atol=1e-5)

    context = SelectionContext(None, options={"by": "sentence", "encoder": str(tmp_path / "encoder")})
    queries = [review(POOL[3].text + " " + POOL[3].text)]
    (chosen,) = SELECTORS["knn"](POOL, queries, 4, context, 0)
    asked = sentence_vectors([queries[0].text], str(tmp_path / "encoder"))[0]
    cosine = found @ asked / np.linalg.norm(found, axis=1) / np.linalg.norm(asked)
    assert chosen == np.argsort(-cosine, kind="stable")[:4].tolist()
