"""Scores, normalisations, calibration, entropies: equal to a computation without the engine."""

import numpy as np
import pytest

from tutelage.core.errors import DataError
from tutelage.icl.encode import Encoder
from tutelage.icl.examples import Example
from tutelage.icl.prompts import MINIMAL, Format, Prompter
from tutelage.icl.scoring import (
    Job,
    calibrate,
    content_free,
    normalised,
    probabilities,
    score_jobs,
    scorer,
    unconditional,
)

LABELS = ("negative", "positive", "so so")
FORM = Format(
    input="Review: {text}", output="\nSentiment: {answer}", separator="\n\n",
    channel_input="Sentiment: {answer}\nReview: ",
)


def example(text, gold):
    return Example({"text": text}, text, LABELS, gold, LABELS[gold])


DEMOS = [example("a fine film", 1), example("a dull play", 0), example("it was there", 2)]
QUERIES = [example("fine play", 1), example("dull dull dull film, 真的", 0)]
SETS = [DEMOS, DEMOS[:1], []]
ALL = [(s, q) for s in range(3) for q in range(2)]


def brute(prompter, logprob, s, q):
    """[L] log-probs of one set and query, each a forward of its own."""
    pairs = [prompter.pair(QUERIES[q], label) for label in LABELS]
    return np.array([logprob(prompter.prefix(SETS[s]) + a, b) for a, b in pairs])


@pytest.mark.parametrize("direction", ["direct", "channel"])
@pytest.mark.parametrize("form", [FORM, MINIMAL, FORM.model_copy(update={"instruction": "Judge these."})])
def test_scores_equal_plain_forwards(engine, logprob, direction, form):
    prompter = Prompter(form, direction)
    scores = score_jobs(engine, [Job(prompter, SETS, QUERIES, ALL)])[0]
    for found, (s, q) in zip(scores.logprob, ALL, strict=True):
        np.testing.assert_allclose(found, brute(prompter, logprob, s, q), atol=1e-4)


def test_several_jobs_in_one_call_are_each_alone(engine):
    jobs = [Job(Prompter(FORM), SETS, QUERIES, ALL), Job(Prompter(MINIMAL, "channel"), SETS[:1], QUERIES, [(0, 1)])]
    together = score_jobs(engine, jobs)
    for job, scores in zip(jobs, together, strict=True):
        for a, b in zip(scores.logprob, score_jobs(engine, [job])[0].logprob, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


def test_shared_demonstrations_are_computed_once(engine):
    asked, computed = engine.counts.asked, engine.counts.computed
    score_jobs(engine, [Job(Prompter(FORM), SETS[:1], QUERIES * 10, [(0, q) for q in range(20)])])
    assert engine.counts.computed - computed < (engine.counts.asked - asked) / 10


def test_perplexity_is_the_whole_prompt_s(engine):
    prompter = Prompter(FORM)
    scores = score_jobs(engine, [Job(prompter, SETS, QUERIES, [(0, 0)], whole=True)])[0]
    whole = [prompter.prefix(DEMOS) + a + b for a, b in (prompter.pair(QUERIES[0], label) for label in LABELS)]
    ids = [engine.encode(text) for text in whole]
    for found, count, tokens in zip(scores.logprob[0], scores.tokens[0], ids, strict=True):
        assert count == len(tokens) - 1
        expected = sum(logprob_of(engine, tokens[:i], tokens[i]) for i in range(1, len(tokens)))
        assert abs(found - expected) < 1e-3


def logprob_of(engine, left, token):
    import torch

    with torch.inference_mode():
        return float(engine.model(input_ids=torch.tensor([left])).logits[0, -1].double().log_softmax(-1)[token])


def test_norms(engine, logprob):
    scores = score_jobs(engine, [Job(Prompter(FORM), SETS, QUERIES, [(0, 0)])])[0]
    raw = brute(Prompter(FORM), logprob, 0, 0)
    prefix = "Sentiment:"
    tokens = [len(engine.encode(prefix + " " + label)) - len(engine.encode(prefix)) for label in LABELS]
    np.testing.assert_allclose(normalised(scores, "token")[0], raw / tokens, atol=1e-4)
    np.testing.assert_allclose(normalised(scores, "byte")[0], raw / [len(x) for x in LABELS], atol=1e-4)
    base = unconditional(engine, Prompter(FORM), QUERIES, empty=False)
    np.testing.assert_allclose(base[0], [logprob("Sentiment:", " " + label) for label in LABELS], atol=1e-4)
    np.testing.assert_allclose(normalised(scores, "pmi", base[:1])[0], raw - base[0], atol=1e-4)
    empty = unconditional(engine, Prompter(FORM), QUERIES, empty=True)
    np.testing.assert_allclose(empty[0], [logprob("", label) for label in LABELS], atol=1e-4)


def test_contextual_calibration_is_the_paper_s(engine, logprob):
    free = content_free(QUERIES[0])
    assert [e.text or e.fields["text"] for e in free] == ["N/A", "", "[MASK]"]
    prompter = Prompter(FORM)
    contexts = [prompter.prefix(DEMOS) + f"Review: {t}\nSentiment: " for t in ("N/A", "", "[MASK]")]
    bias = np.mean([probabilities(np.array([logprob(c, x) for x in LABELS])) for c in contexts], axis=0)
    p = probabilities(brute(prompter, logprob, 0, 0))
    expected = p / bias
    found = score_jobs(engine, [Job(prompter, [DEMOS], [QUERIES[0], *free], [(0, i) for i in range(4)])])[0]
    rows = [probabilities(x) for x in found.logprob]
    np.testing.assert_allclose(calibrate(rows[0], np.mean(rows[1:], axis=0)), expected / expected.sum(), atol=1e-4)


def test_the_scorer_gives_an_array(engine, logprob):
    found = scorer(engine, Prompter(FORM))(SETS, QUERIES)
    assert found.shape == (3, 2, 3)
    for s, q in ALL:
        np.testing.assert_allclose(found[s, q], brute(Prompter(FORM), logprob, s, q), atol=1e-4)


def test_demonstrations_too_long_for_the_context_are_dropped_as_a_set(engine, logprob):
    many = [example(f"a fine film number {i}", i % 3) for i in range(60)]
    encoded = Encoder(engine, Prompter(FORM)).pairs([many], QUERIES, [(0, 0), (0, 1)])
    dropped = encoded.dropped[0]
    assert 0 < dropped < 60 and not encoded.too_long
    assert all(len(a) + len(b) - 1 <= engine.context_length for pairs in encoded.pairs for a, b in pairs)
    scores = score_jobs(engine, [Job(Prompter(FORM), [many], QUERIES, [(0, 0)])])[0]
    prefix = Prompter(FORM).prefix(many[scores.dropped[0] :])
    assert abs(scores.logprob[0][0] - logprob(prefix + "Review: fine play\nSentiment: ", LABELS[0])) < 1e-4


def test_a_query_that_never_fits_is_left_out_and_told(engine):
    long = example("word " * 700, 0)
    found = score_jobs(engine, [Job(Prompter(FORM), SETS, [QUERIES[0], long], [(0, 0), (0, 1)])])[0]
    assert found.too_long == [1] and len(found.logprob[0]) == 3 and len(found.logprob[1]) == 0


def test_a_label_without_tokens_is_an_error(engine):
    query = Example({"text": "x"}, "x", ("positive", ""), 0, "positive")
    with pytest.raises(DataError, match="no token of its own"):
        score_jobs(engine, [Job(Prompter(FORM), [DEMOS], [query], [(0, 0)])])


def test_prefixes_are_encoded_apart_exactly(engine):
    """A tokenizer that merges across the border falls back to whole texts; ids are those of the whole either way."""
    for form in (FORM, MINIMAL, Format(separator="", output="{answer}")):
        prompter = Prompter(form)
        for (s, q), pairs in zip(ALL, Encoder(engine, prompter).pairs(SETS, QUERIES, ALL).pairs, strict=True):
            for (a, b), label in zip(pairs, LABELS, strict=True):
                context, continuation = prompter.pair(QUERIES[q], label)
                assert [*a, *b] == engine.encode(prompter.prefix(SETS[s]) + context + continuation)
