"""The trie and its walk: every token once, paths give the sequences back, forwards bounded, nothing kept too long."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.engine.plan import Walk, units
from tutelage.engine.trie import Trie

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=12)


def made(sequences: list[list[int]]) -> Trie:
    return Trie([np.array(s, dtype=np.int64) for s in sequences])


@given(SEQUENCES)
def test_paths_are_the_sequences_and_nothing_is_there_twice(sequences: list[list[int]]) -> None:
    trie = made(sequences)
    for tokens, leaf in zip(sequences, trie.leaf):
        assert [t for node in leaf.path() for t in node.tokens.tolist()] == tokens
    prefixes = {tuple(s[: i + 1]) for s in sequences for i in range(len(s))}
    assert sum(node.length for node in trie.nodes) == len(prefixes)
    for number, node in enumerate(trie.nodes):
        assert node.order == number and node.length > 0
        below = [n for n in trie.nodes if node in n.path()]
        assert [n.order for n in below] == list(range(node.order, node.last))
        assert node.subtree == sum(n.length for n in below)
        firsts = [int(child.tokens[0]) for child in node.children]
        assert len(set(firsts)) == len(firsts)


@settings(max_examples=60)
@given(SEQUENCES, st.integers(1, 20), st.integers(1, 12))
def test_a_walk_computes_every_node_once_within_its_budget(
    sequences: list[list[int]], budget: int, small: int
) -> None:
    trie = made(sequences)
    walk = Walk(trie.nodes, budget, small=small)
    parts = units(trie.nodes, small)
    assert [n for u in parts for n in range(u.first, u.last)] == list(range(len(trie.nodes)))
    seen: dict[int, int] = {}
    largest = max(u.tokens for u in parts)
    for chunk in walk.chunks():
        assert len(chunk.ids) <= max(budget, largest)
        for order, at in chunk.starts.items():
            node = trie.nodes[order]
            assert order not in seen
            seen[order] = at
            assert chunk.ids[at : at + node.length].tolist() == node.tokens.tolist()
            assert chunk.positions[at : at + node.length].tolist() == list(range(node.start, node.stop))
        own = torch.cat([torch.arange(len(chunk.ids))[b.targets()] for b in chunk.plan.own])
        assert sorted(own.tolist()) == list(range(len(chunk.ids)))  # every token in exactly one own span
        for block in chunk.plan.keepers:
            block(0, torch.zeros(1, len(chunk.ids), 2), torch.zeros(1, len(chunk.ids), 2))
    assert set(seen) == set(range(len(trie.nodes))) and not walk.stored
