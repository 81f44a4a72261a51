"""What an ideal predictor says on GINC prompts: exact posteriors by the forward algorithm, over HMMs and hidden states.

Two of them, because a prompt is no document:

* `pretraining_posterior`: what pretraining teaches if it teaches everything. The prompt is read as a piece of one
  document of one HMM, running across the delimiters. A prompt's jumps (a delimiter, then the same slot again and a
  fresh value) may be transitions that the HMM never makes; then Bayes' rule has nothing to say. So each chain is given
  a small chance `lapse` to jump anywhere, and the posterior rests on the explanations with the fewest jumps.
* `prompt_posterior`: the prompts' own process (one HMM, one starting slot, examples independent of each other), which
  nobody who has only read documents can know. It is the ceiling.

The authors' own make_hmm_pred averages the HMMs' predictions with equal weights whatever the prompt says; no published
comparison has the posterior. Per HMM, beliefs are normalised and the evidence is kept as a logarithm: after 64 examples
the HMMs' evidences differ by more than double precision spans. Axis letters as in ginc_world; Y tokens (next word).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tutelage.core.progress import Progress
from tutelage.studies.ginc_world import Floats, Ints, Prompts, World


def _emissions(world: World) -> Floats:
    """[V * S, Y]: 1 where the state emits the token."""
    return np.eye(world.vocabulary)[world.table.reshape(-1)]


def _allowed(world: World, tokens: Ints) -> Floats:
    """[P, V, S]: 1 where the state emits the prompt's token."""
    return (world.table[None] == tokens[:, None, None]).astype(np.float64)


def _step(belief: Floats, values: Floats, slots: Floats) -> Floats:
    """Beliefs [P, H, ..., V, S] one transition later; values [V, V], slots [H, S, S]."""
    shape = belief.shape
    belief = belief.reshape(*shape[:2], -1, shape[-1])
    moved = np.matmul(belief, slots).reshape(shape)  # H of `slots` meets H of the beliefs
    return np.matmul(values.T, moved)


def _normalised(belief: Floats) -> tuple[Floats, Floats]:
    """Beliefs [..., V, S] divided by their sum, and the sum's logarithm [...]; all zeros stay zeros (and -inf)."""
    total = belief.sum((-2, -1))
    with np.errstate(divide="ignore"):
        log = np.log(total)
    return belief / np.where(total > 0, total, 1.0)[..., None, None], log


def _weights(log: Floats, axes: tuple[int, ...]) -> Floats:
    """exp(log) normalised over the axes; uniform where everything is -inf (no hypothesis explains the tokens)."""
    top = log.max(axes, keepdims=True)
    weights = np.where(np.isfinite(top), np.exp(log - np.where(np.isfinite(top), top, 0.0)), 1.0)
    return weights / weights.sum(axes, keepdims=True)


def with_lapse(matrix: Floats, lapse: float) -> Floats:
    """Transitions [..., N, N] that jump to a uniformly random state with probability `lapse`."""
    return (1 - lapse) * matrix + lapse / matrix.shape[-1]


def pretraining_posterior(
    world: World, tokens: Ints, positions: Sequence[int], lapse: float = 0.0, from_start: bool = False
) -> tuple[Floats, Floats]:
    """P(next token | tokens so far) as a document of the mixture, after each of the `positions` (0: the first token).

    tokens [P, T] -> (probabilities [P, positions, Y], posterior of the HMMs [P, positions, H]). HMMs are equally likely
    at first, and so are their states (a training block begins anywhere in a document, and the uniform law is the
    chains' stationary one); `from_start`: the states have the law of a document's beginning. Where no HMM can have
    produced the tokens (lapse 0), probabilities are 0.
    """
    n_values, n_slots = world.table.shape
    emit = _emissions(world)
    values, slots = with_lapse(world.values, lapse), with_lapse(world.slots, lapse)
    starts = world.starts if from_start else np.full_like(world.starts, 1 / world.table.size)
    belief = np.broadcast_to(starts.reshape(world.hmms, n_values, n_slots), (len(tokens), *slots.shape[:1],
                             n_values, n_slots))  # fmt: skip
    log = np.zeros((len(tokens), world.hmms))
    predictions, posteriors = [], []
    wanted = set(positions)
    for t in range(max(wanted) + 1):
        belief, evidence = _normalised(belief * _allowed(world, tokens[:, t])[:, None])
        log = log + evidence
        belief = _step(belief, values, slots)
        if t in wanted:
            weights = _weights(log, (1,))
            predictions.append(np.einsum("ph,phn->pn", weights, belief.reshape(*belief.shape[:2], -1)) @ emit)
            posteriors.append(weights)
    order = np.argsort(np.argsort(positions))  # back to the order in which they were asked
    return np.stack(predictions, 1)[:, order], np.stack(posteriors, 1)[:, order]


def ideal_loss(world: World, tokens: Ints) -> float:
    """Nats a token that the posterior spends on pieces [P, T] of documents, the first token of each not counted: below
    it no model can stay that starts in the middle of a document."""
    positions = list(range(tokens.shape[1] - 1))
    probabilities, _ = pretraining_posterior(world, tokens, positions)
    said = np.take_along_axis(probabilities, tokens[:, 1:, None], axis=2)
    return float(-np.log(said).mean())


def _example_logs(world: World, examples: Ints) -> Floats:
    """log P(example | HMM, starting slot) [P, H, S] of examples [P, k]: uniform value, that slot, k - 1 transitions.

    Backward algorithm: what follows a state does not depend on where the example started, so all slots share it.
    """
    slots_T = world.slots.transpose(0, 2, 1)
    later = np.ones((len(examples), world.hmms, *world.table.shape))
    for t in range(examples.shape[1] - 1, -1, -1):
        later = later * _allowed(world, examples[:, t])[:, None]
        if t:
            later = _step(later, world.values.T, slots_T)
    with np.errstate(divide="ignore"):
        return np.log(later.mean(2))


def _from_slots(world: World, inputs: Ints) -> tuple[Floats, Floats]:
    """(P(next | inputs, HMM, starting slot) [P, H, S, Y], log P(inputs | HMM, starting slot) [P, H, S])."""
    n_values, n_slots = world.table.shape
    first = np.zeros((n_slots, n_values, n_slots))
    first[np.arange(n_slots), :, np.arange(n_slots)] = 1 / n_values
    belief = np.broadcast_to(first, (len(inputs), world.hmms, *first.shape))
    log = np.zeros(belief.shape[:3])
    for t in range(inputs.shape[1]):
        belief, evidence = _normalised(belief * _allowed(world, inputs[:, t])[:, None, None])
        log = log + evidence
        belief = _step(belief, world.values, world.slots)
    return belief.reshape(*belief.shape[:3], -1) @ _emissions(world), log


def labels(world: World, prompts: Prompts, examples: int) -> Ints:
    """[P]: the right answer, argmax_y P(y | input, the prompt's HMM, its starting slot): not the sampled y."""
    nexts, _ = _from_slots(world, prompts.inputs(examples))
    return nexts[np.arange(len(nexts)), prompts.hmm, prompts.slot].argmax(-1)


def prompt_posterior(world: World, prompts: Prompts, counts: Sequence[int]) -> tuple[Floats, Floats, Floats]:
    """The predictor that knows how prompts are made, after each number of examples in `counts`.

    Returns (P(next token | prompt) [P, counts, Y], the chance that a token is the label [P, counts, Y], posterior of
    (HMM, starting slot) [P, counts, H, S]). The two differ because the label is the most likely token under the
    hidden truth: the second's argmax is the best guess that anyone can make.
    """
    size = prompts.length + 1
    known = [np.zeros((len(prompts.tokens), world.hmms, world.table.shape[1]))]
    known[0][..., 0] = -np.inf  # no example starts in the delimiter's slot
    for n in range(max(counts)):
        known.append(known[-1] + _example_logs(world, prompts.tokens[:, n * size : n * size + prompts.length]))
    nexts_of, votes_of, posteriors = [], [], []
    for n in counts:
        nexts, log = _from_slots(world, prompts.inputs(n))
        weights = _weights(known[n] + log, (1, 2))
        nexts_of.append(np.einsum("phs,phsy->py", weights, nexts))
        best = np.eye(world.vocabulary)[nexts.argmax(-1)]
        votes_of.append(np.einsum("phs,phsy->py", weights, best))
        posteriors.append(weights)
    return np.stack(nexts_of, 1), np.stack(votes_of, 1), np.stack(posteriors, 1)


def pretraining_answers(
    world: World, tokens: Ints, positions: Sequence[int], lapse: float, name: str = "posterior", chunk: int = 100
) -> Ints:
    """[P, positions] the likeliest next token by `pretraining_posterior`, `chunk` prompts at a time; -1 where no HMM
    can have produced the tokens (lapse 0)."""
    found = []
    with Progress(name, "prompts", len(tokens)) as progress:
        for at in range(0, len(tokens), chunk):
            likely, _ = pretraining_posterior(world, tokens[at : at + chunk], positions, lapse)
            found.append(np.where(likely.sum(-1) > 0, likely.argmax(-1), -1))
            progress.add(len(likely))
    return np.concatenate(found)


def prompt_answers(
    world: World, prompts: Prompts, counts: Sequence[int], name: str = "posterior", chunk: int = 100
) -> tuple[Ints, Ints]:
    """[P, counts] the likeliest next token, and the likeliest label, by `prompt_posterior`."""
    tokens, best = [], []
    with Progress(name, "prompts", len(prompts.tokens)) as progress:
        for at in range(0, len(prompts.tokens), chunk):
            part = slice(at, at + chunk)
            some = Prompts(prompts.tokens[part], prompts.length, prompts.hmm[part], prompts.slot[part])
            nexts, votes, _ = prompt_posterior(world, some, counts)
            tokens.append(nexts.argmax(-1))
            best.append(votes.argmax(-1))
            progress.add(len(nexts))
    return np.concatenate(tokens), np.concatenate(best)
