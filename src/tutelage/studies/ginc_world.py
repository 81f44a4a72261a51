"""GINC (Xie et al. 2021, "An Explanation of In-context Learning as Implicit Bayesian Inference"): a mixture of HMMs.

A hidden state is a pair (value v, slot s) and emits table[v, s]; slot 0 emits the delimiter "/". The value chain is the
same in every HMM, the slot chain is the HMM's own: which HMM it is, is what a prompt's examples tell. Parameters are
drawn in the order of the authors' generate_data.py from numpy's legacy generator, so seed 1111 is their data set's
world; documents and prompts have the same distribution but come from streams of our own.

Axis letters: H HMMs, V values, S slots, P prompts (or documents), T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, permutations
from string import ascii_lowercase

import numpy as np
from numpy.typing import NDArray

from tutelage.core.errors import ConfigError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
DELIMITER = 0
"""Token id of "/"."""


@dataclass(frozen=True)
class World:
    """A mixture of HMMs with factorial hidden states."""

    vocabulary: int
    """Words, the delimiter included."""
    table: Ints
    """[V, S]: the token that state (v, s) emits."""
    values: Floats
    """[V, V]: transitions of the value chain, rows sum to 1; shared by all HMMs."""
    slots: Floats
    """[H, S, S]: transitions of each HMM's slot chain."""
    starts: Floats
    """[H, V * S]: distribution of a document's first state, index v * S + s."""

    @property
    def hmms(self) -> int:
        return len(self.slots)

    def only(self, which: Sequence[int]) -> World:
        """The mixture of these HMMs alone."""
        return replace(self, slots=self.slots[list(which)], starts=self.starts[list(which)])


def make_world(
    vocabulary: int = 50, values: int = 10, slots: int = 10, hmms: int = 10, seed: int = 1111, self_value: float = 0.9,
    transition_temperature: float = 0.1, start_temperature: float = 10.0,
) -> World:  # fmt: skip
    """The world of `seed`: the first half of its HMMs is for pretraining, the second is what pretraining never saw.

    `self_value`: weight of the identity in the value chain (0: the paper's "fast changing" ablation). ConfigError for a
    vocabulary under 3 (a delimiter and two words) or fewer than two values, slots or HMMs.
    """
    if vocabulary < 3 or min(values, slots, hmms) < 2:
        words = f"vocabulary={vocabulary}, values={values}, slots={slots}, hmms={hmms}"
        raise ConfigError(f"GINC: {words}; expected a vocabulary of at least 3 and at least 2 of the others")
    random = np.random.RandomState(seed)
    table = random.randint(low=1, high=vocabulary, size=(values, slots))
    table[:, 0] = DELIMITER
    starts, own = [], []
    for _ in range(hmms):
        starts.append(_softmax(random.rand(values * slots) - 0.5, start_temperature))
        own.append(_mixed_permutations(random, slots, transition_temperature))
    shared = _mixed_permutations(np.random.RandomState(seed + 3), values, transition_temperature)
    shared = (1 - self_value) * shared + self_value * np.eye(values)
    return World(vocabulary, table.astype(np.int64), shared, np.stack(own), np.stack(starts))


def _softmax(x: Floats, temperature: float) -> Floats:
    e = np.exp(x / temperature - np.max(x / temperature))
    return e / e.sum()


def _mixed_permutations(random: np.random.RandomState, n: int, temperature: float) -> Floats:
    """[n, n] convex mixture of n random permutation matrices: doubly stochastic, so the uniform law is stationary."""
    weights = _softmax(random.rand(n) - 0.5, temperature)
    return np.sum(weights[:, None, None] * np.stack([np.eye(n)[random.permutation(n)] for _ in range(n)]), axis=0)


def _walk(chain: Floats, which: Ints, first: Ints, steps: int, random: np.random.Generator) -> Ints:
    """[P, steps + 1] states of P walks; walk p starts in first[p] and follows chain[which[p]] of chain [H, N, N]."""
    upper = chain.cumsum(-1)
    upper /= upper[..., -1:]
    out = np.empty((len(first), steps + 1), dtype=np.int64)
    out[:, 0] = first
    for t in range(steps):
        uniform = random.random(len(first))
        out[:, t + 1] = (uniform[:, None] >= upper[which, out[:, t]]).sum(-1)
    return out


def sample_documents(world: World, count: int, length: int, seed: int) -> tuple[Ints, Ints]:
    """Tokens [P, T] of documents, each from one HMM drawn uniformly, and which HMM that was [P]."""
    random = np.random.default_rng(seed)
    n_slots = world.table.shape[1]
    which = random.integers(world.hmms, size=count)
    upper = world.starts.cumsum(-1)
    first = (random.random(count)[:, None] >= (upper / upper[:, -1:])[which]).sum(-1)
    v = _walk(world.values[None], np.zeros(count, dtype=np.int64), first // n_slots, length - 1, random)
    s = _walk(world.slots, which, first % n_slots, length - 1, random)
    return world.table[v, s], which


@dataclass(frozen=True)
class Prompts:
    """P prompts of n + 1 examples, each `length` tokens and a delimiter; the last example's delimiter is left out.

    A prompt with fewer examples is the beginning of one of these: the first n examples are independent of how many
    follow. So one pass over `tokens` answers every number of examples.
    """

    tokens: Ints
    """[P, (n + 1) * (length + 1) - 1]."""
    length: int
    """k, tokens of an example: k - 1 of input and one of output."""
    hmm: Ints
    """[P]: the HMM of each prompt."""
    slot: Ints
    """[P]: the slot in which every example of the prompt starts."""

    def query(self, examples: int) -> int:
        """Position of the last input token after so many whole examples: there the label is predicted."""
        return examples * (self.length + 1) + self.length - 2

    def inputs(self, examples: int) -> Ints:
        """[P, k - 1]: the input of the example that follows so many whole ones."""
        end = self.query(examples) + 1
        return self.tokens[:, end - self.length + 1 : end]


def sample_prompts(world: World, count: int, examples: int, length: int, seed: int) -> Prompts:
    """In-distribution prompts ("ID_sample" in the authors' code): one HMM and one starting slot s >= 1 a prompt; every
    example starts from a fresh uniform value in that slot, makes k - 1 transitions, and ends with the delimiter.

    ConfigError for a length under 2 (an input token and a label).
    """
    if length < 2:
        raise ConfigError(f"GINC: examples of length {length}; expected at least 2, an input token and its label")
    random = np.random.default_rng(seed)
    n_values, n_slots = world.table.shape
    which = random.integers(world.hmms, size=count)
    slot = random.integers(1, n_slots, size=count)
    each, zero = examples + 1, np.zeros(count * (examples + 1), dtype=np.int64)
    first = random.integers(n_values, size=count * each)
    v = _walk(world.values[None], zero, first, length - 1, random)
    s = _walk(world.slots, which.repeat(each), slot.repeat(each), length - 1, random)
    words = np.concatenate([world.table[v, s], zero[:, None] + DELIMITER], axis=1)
    return Prompts(words.reshape(count, -1)[:, :-1], length, which, slot)


def words_of(count: int) -> Iterator[str]:
    """The authors' names of the tokens: "/" and then a, b, ..., z, ab, ac, ..."""
    named = ("".join(p) for n in range(1, 27) for p in permutations(ascii_lowercase, n))
    yield "/"
    yield from islice(named, count - 1)
