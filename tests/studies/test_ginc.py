"""GINC: the generator's laws, the exact posteriors against enumeration, and the study end to end, very small."""

import itertools
import json

import numpy as np
import pytest

from tutelage.core.errors import ConfigError
from tutelage.studies.ginc_bayes import (
    ideal_loss,
    labels,
    pretraining_answers,
    pretraining_posterior,
    prompt_answers,
    prompt_posterior,
    with_lapse,
)  # fmt: skip
from tutelage.studies.ginc_world import Prompts, World, make_world, sample_documents, sample_prompts, words_of


def stochastic(rng, *shape):
    x = rng.random(shape) ** 3 + 0.01
    return x / x.sum(-1, keepdims=True)


@pytest.fixture
def tiny():
    """Two HMMs of 2 values and 3 slots that emit 4 tokens; token 2 comes from two states."""
    rng = np.random.default_rng(5)
    table = np.array([[0, 1, 2], [0, 2, 3]])
    return World(4, table, stochastic(rng, 2, 2), stochastic(rng, 2, 3, 3), stochastic(rng, 2, 6))


def paths_probability(world, h, tokens, first, lapse=0.0):
    """P(tokens | HMM h, law of the first state) by the sum over every path of hidden states."""
    step = np.kron(with_lapse(world.values, lapse), with_lapse(world.slots[h], lapse))
    emitted = world.table.reshape(-1)
    total = 0.0
    for path in itertools.product(*[[s for s in range(len(emitted)) if emitted[s] == token] for token in tokens]):
        p = first[path[0]]
        for a, b in itertools.pairwise(path):
            p *= step[a, b]
        total += p
    return total


@pytest.mark.parametrize("lapse", [0.0, 0.05])
@pytest.mark.parametrize("from_start", [False, True])
def test_pretraining_posterior_equals_enumeration(tiny, lapse, from_start):
    tokens = np.array([[1, 2, 0, 2, 3], [2, 2, 1, 0, 0], [3, 0, 2, 2, 1]])
    positions = [4, 0, 2]
    got, hmms = pretraining_posterior(tiny, tokens, positions, lapse, from_start)
    for i, row in enumerate(tokens):
        for j, at in enumerate(positions):
            joint = np.array([
                [paths_probability(tiny, h, [*row[: at + 1], y], tiny.starts[h] if from_start else np.full(6, 1 / 6),
                                   lapse) for y in range(4)] for h in range(2)
            ])  # fmt: skip
            np.testing.assert_allclose(got[i, j], joint.sum(0) / joint.sum(), atol=1e-12)
            np.testing.assert_allclose(hmms[i, j], joint.sum(1) / joint.sum(), atol=1e-12)


def test_prompt_posterior_equals_enumeration(tiny):
    prompts = Prompts(np.array([[1, 2, 2, 0, 2, 3, 1, 0, 2, 2, 3], [2, 0, 1, 0, 2, 1, 2, 0, 1, 2, 2]]), 3,
                      np.array([0, 1]), np.array([1, 2]))  # fmt: skip
    counts = [0, 1, 2]
    nexts, votes, posterior = prompt_posterior(tiny, prompts, counts)

    def likelihood(h, slot, example):
        first = np.zeros(6)
        first[[slot, 3 + slot]] = 0.5
        return paths_probability(tiny, h, example, first)

    for i, row in enumerate(prompts.tokens):
        for j, n in enumerate(counts):
            examples = [row[m * 4 : m * 4 + 3] for m in range(n)]
            x = list(row[n * 4 : n * 4 + 2])
            joint = np.zeros((2, 3, 4))
            for h, slot, y in itertools.product(range(2), (1, 2), range(4)):
                joint[h, slot, y] = likelihood(h, slot, [*x, y]) * np.prod([likelihood(h, slot, e) for e in examples])
            total = joint.sum()
            np.testing.assert_allclose(nexts[i, j], joint.sum((0, 1)) / total, atol=1e-12)
            np.testing.assert_allclose(posterior[i, j], joint.sum(-1) / total, atol=1e-12)
            best = joint.argmax(-1)
            vote = [(joint.sum(-1) * (best == y)).sum() / total for y in range(4)]
            np.testing.assert_allclose(votes[i, j], vote, atol=1e-12)
    for n in counts:
        want = [np.argmax([likelihood(h, s, [*x, y]) for y in range(4)])
                for h, s, x in zip(prompts.hmm, prompts.slot, prompts.inputs(n))]  # fmt: skip
        assert labels(tiny, prompts, n).tolist() == want


def test_the_world_has_the_papers_structure():
    world = make_world(50)
    assert world.hmms == 10 and world.table.shape == (10, 10)
    assert (world.table[:, 0] == 0).all() and (world.table[:, 1:] > 0).all() and world.table.max() < 50
    for matrix in (world.values, *world.slots):  # mixtures of permutations: the uniform law is stationary
        np.testing.assert_allclose(matrix.sum(0), 1)
        np.testing.assert_allclose(matrix.sum(1), 1)
    assert (np.diag(world.values) >= 0.9).all()
    assert np.diag(make_world(50, self_value=0.0).values).max() < 1
    assert np.ptp(world.starts, axis=1).max() < 0.002
    assert list(words_of(50))[:3] == ["/", "a", "b"] and len(set(words_of(150))) == 150
    assert [*words_of(29)][26:] == ["z", "ab", "ac"]
    with pytest.raises(ConfigError, match="vocabulary=2"):
        make_world(2)


def test_documents_follow_their_hmms_transitions(tiny):
    world = World(6, np.array([[0, 1, 2], [3, 4, 5]]), tiny.values, tiny.slots, tiny.starts)  # states can be read off
    tokens, which = sample_documents(world, 400, 200, 3)
    assert (sample_documents(world, 400, 200, 3)[0] == tokens).all()
    for h in range(2):
        mine = tokens[which == h]
        pairs = np.zeros((6, 6))
        np.add.at(pairs, (mine[:, :-1].reshape(-1), mine[:, 1:].reshape(-1)), 1)
        step = np.kron(world.values, world.slots[h])
        np.testing.assert_allclose(pairs / pairs.sum(1, keepdims=True), step, atol=0.02)
        starts = np.bincount(mine[:, 0], minlength=6) / len(mine)
        np.testing.assert_allclose(starts, world.starts[h], atol=0.1)


def test_prompts_are_examples_of_one_hmm_and_slot():
    world = make_world(150)
    prompts = sample_prompts(world, 200, 8, 4, 1)
    assert prompts.tokens.shape == (200, 9 * 5 - 1)
    assert (prompts.tokens[:, 4::5] == 0).all()  # a delimiter behind each example
    assert prompts.query(0) == 2 and prompts.query(3) == 17
    assert (prompts.inputs(3) == prompts.tokens[:, 15:18]).all()
    starts = prompts.tokens[:, 0::5]
    for row, slot in zip(starts, prompts.slot):
        assert slot >= 1 and np.isin(row, world.table[:, slot]).all()
    truth = labels(world, prompts, 8)
    assert 0.4 < (truth == prompts.tokens[:, -1]).mean() < 1  # the likeliest token, which is often the one drawn
    with pytest.raises(ConfigError, match="length 1"):
        sample_prompts(world, 2, 1, 1, 0)


def test_long_prompts_do_not_underflow_and_more_examples_tell_more():
    world = make_world(100).only(range(5))
    prompts = sample_prompts(world, 30, 64, 5, 2)
    counts = [0, 4, 64]
    probabilities, hmms = pretraining_posterior(world, prompts.tokens, [prompts.query(n) for n in counts], 1e-4)
    np.testing.assert_allclose(probabilities.sum(-1), 1)
    assert np.isfinite(hmms).all()
    nexts, votes, posterior = prompt_posterior(world, prompts, counts)
    np.testing.assert_allclose(nexts.sum(-1), 1)
    truth = posterior[np.arange(30), :, prompts.hmm, prompts.slot]  # [P, counts]
    assert truth[:, 2].mean() > 0.9 > truth[:, 0].mean()
    positions = [prompts.query(n) for n in counts]
    assert (pretraining_answers(world, prompts.tokens, positions, 1e-4, chunk=7) == probabilities.argmax(-1)).all()
    tokens, best = prompt_answers(world, prompts, counts, chunk=7)
    assert (tokens == nexts.argmax(-1)).all() and (best == votes.argmax(-1)).all()


def test_not_knowing_the_hmm_costs_documents_at_most_its_logarithm():
    world = make_world(50).only(range(3))
    tokens, which = sample_documents(world, 12, 60, 4)
    known = [ideal_loss(world.only([h]), tokens[[i]]) for i, h in enumerate(which)]
    mixed = ideal_loss(world, tokens)
    assert np.mean(known) - 0.02 < mixed <= np.mean(known) + np.log(3) / 59 + 1e-9
    tokens[0, 5] = min(set(range(50)) - set(world.table.reshape(-1)))
    assert ideal_loss(world, tokens) == np.inf  # what no HMM can say


def test_what_no_hmm_can_have_produced_has_probability_0(tiny):
    world = World(4, tiny.table, tiny.values, np.stack([np.eye(3)] * 2), tiny.starts)  # slots never change
    probabilities, _ = pretraining_posterior(world, np.array([[1, 3]]), [1])
    assert (probabilities == 0).all()
    assert pretraining_answers(world, np.array([[1, 3]]), [1], 0.0).tolist() == [[-1]]
    probabilities, _ = pretraining_posterior(world, np.array([[1, 3]]), [1], lapse=1e-9)
    np.testing.assert_allclose(probabilities.sum(), 1)


SMALL = dict(
    vocabulary=30, lengths=[3], examples=[0, 2], prompts=20, steps=4, ablation_steps=3, block_size=32,
    model="laptop-0.3m", batch_size=2, precision="fp32",
)  # fmt: skip


def test_the_study_writes_its_run_and_is_not_done_twice(tmp_path):
    from tutelage.pipeline.stages import launch

    path, ran = launch("ginc", {**SMALL, "out": str(tmp_path / "ginc")})
    summary = json.loads((path / "summary.json").read_text())
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert ran and [row["step"] for row in rows] == [0, 2]
    table = summary["accuracy"]["3"]
    exact = {"bayes_pretraining_0.01", "bayes_prompt", "bayes_label", "bayes_one_hmm_0.01", "possible"}
    assert {"model", "one_hmm", "random"} | exact <= set(table)
    for row in table["model"]:
        assert row["low"] <= row["accuracy"] <= row["high"] and row["prompts"] == 20
    assert (path / "figures" / "study.png").read_bytes()[:4] == b"\x89PNG"
    assert (path / "mixture" / "model" / "config.json").is_file() and summary["trainings"]["model"]["tokens"] == 256
    assert not launch("ginc", {**SMALL, "out": str(tmp_path / "ginc")})[1]


def test_a_study_goes_on_with_its_finished_trainings(tmp_path, monkeypatch):
    from tutelage.pipeline.stages import launch
    from tutelage.studies import ginc

    with monkeypatch.context() as patch:
        patch.setattr(ginc, "_accuracies", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            launch("ginc", {**SMALL, "out": str(tmp_path)})
    monkeypatch.setattr(ginc, "pretrain", lambda *args, **kw: pytest.fail("trained again"))
    assert launch("ginc", {**SMALL, "out": str(tmp_path)})[1]


def test_prompts_that_do_not_fit_the_block_are_refused(tmp_path):
    from tutelage.pipeline.stages import launch

    with pytest.raises(ConfigError, match="block_size=32: 64 examples of 3 tokens take 258"):
        launch("ginc", {**SMALL, "examples": [0, 64], "out": str(tmp_path)})
