"""Tries and walks over them: every token once, in bounded forwards, each attending to exactly its own path."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tutelage.engine.plan import SMALL, Walk, units
from tutelage.engine.trie import Node, Trie
from tutelage.model.kernels import How

FAST = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
# few letters, so that beginnings are shared; long runs, so that nodes outgrow units and budgets
RUNS = st.tuples(st.integers(0, 2), st.integers(1, 9)).map(lambda run: [run[0]] * run[1])
SEQUENCES = st.lists(st.lists(RUNS, min_size=1, max_size=4).map(lambda runs: sum(runs, [])), min_size=1, max_size=9)


def made(sequences: list[list[int]]) -> Trie:
    return Trie([np.array(s, dtype=np.int64) for s in sequences])


@FAST
@given(sequences=SEQUENCES)
@example(sequences=[[1], [1, 1], [1]])
@example(sequences=[[255, 256], [256, 255], [255]])
@example(sequences=[[2**20, 1], [2**20, 2]])
def test_a_trie_holds_each_prefix_once(sequences: list[list[int]]) -> None:
    trie = made(sequences)
    for tokens, leaf in zip(sequences, trie.leaf, strict=True):
        path = leaf.path()
        assert np.concatenate([node.tokens for node in path]).tolist() == tokens
        assert all(a.stop == b.start and b in a.children for a, b in zip(path, path[1:], strict=False))
        for depth in range(len(tokens)):
            node = leaf.at(depth)
            assert node in path and node.start <= depth < node.stop
    prefixes = {tuple(s[: i + 1]) for s in sequences for i in range(len(s))}
    assert sum(node.length for node in trie.nodes) == len(prefixes)
    assert [node.order for node in trie.nodes] == list(range(len(trie.nodes)))
    ends = {id(leaf) for leaf in trie.leaf}
    for siblings in [trie.roots, *(node.children for node in trie.nodes)]:
        assert len({int(node.tokens[0]) for node in siblings}) == len(siblings)
    for node in trie.nodes:
        assert node.length > 0 and (len(node.children) != 1 or id(node) in ends)  # nothing is cut without need
        below = [other for other in trie.nodes if node in other.path()]
        assert [other.order for other in below] == list(range(node.order, node.last))
        assert node.subtree == sum(other.length for other in below)


def test_no_sequence_is_no_node() -> None:
    assert Trie([]).nodes == [] and list(Walk([], 8).chunks()) == []


@FAST
@given(sequences=SEQUENCES, small=st.integers(1, 40))
def test_units_are_small_subtrees_or_one_node(sequences: list[list[int]], small: int) -> None:
    nodes = made(sequences).nodes
    found = units(nodes, small)
    assert [i for unit in found for i in range(unit.first, unit.last)] == list(range(len(nodes)))
    for unit in found:
        first = nodes[unit.first]
        assert unit.tokens == sum(node.length for node in nodes[unit.first : unit.last])
        assert unit.large == (first.last > nodes[unit.last - 1].order + 1)
        if unit.last > unit.first + 1:
            assert unit.tokens <= small and nodes[unit.last - 1].order + 1 == first.last
        elif unit.large:
            assert first.subtree > small


def softmax(query_HD: torch.Tensor, key_HLD: torch.Tensor, value_HLD: torch.Tensor, how: How) -> torch.Tensor:
    """Attention of one query over its path [H, d], in float64."""
    repeat = query_HD.shape[0] // key_HLD.shape[0]
    key, value = (x.double().repeat_interleave(repeat, 0) for x in (key_HLD, value_HLD))
    scores = (key @ query_HD.double()[..., None])[..., 0] * how.scale
    if how.softcap is not None:
        scores = how.softcap * torch.tanh(scores / how.softcap)
    if how.window is not None:
        scores[:, : max(0, scores.shape[1] - how.window)] = -math.inf
    return (scores.softmax(-1)[:, None] @ value)[:, 0]


class _Layer:
    """Queries, keys and values [H, tokens, d] of every node of a trie, and attention along each node's path."""

    def __init__(self, nodes: list[Node], how: How, seed: int) -> None:
        self.how = how
        generator = torch.Generator().manual_seed(seed)
        self.nodes = {node.order: node for node in nodes}
        self.x = {n.order: [torch.randn(h, n.length, 4, generator=generator) for h in (4, 2, 2)] for n in nodes}

    def tensors(self, orders: list[int]) -> list[torch.Tensor]:
        return [torch.cat([self.x[order][i] for order in orders], 1) for i in range(3)]

    def check(self, order: int, out_NHD: torch.Tensor) -> None:
        node = self.nodes[order]
        _, key, value = self.tensors([n.order for n in node.path()])
        for offset in range(node.length):
            seen = node.start + offset + 1
            wanted = softmax(self.x[order][0][:, offset], key[:, :seen], value[:, :seen], self.how)
            torch.testing.assert_close(out_NHD[offset].double(), wanted, rtol=1e-5, atol=1e-5)


@FAST
@given(
    sequences=SEQUENCES, budget=st.integers(1, 60), small=st.integers(1, 40), kept=st.integers(0, 3),
    window=st.sampled_from([None, 1, 3, 8]), cap=st.sampled_from([None, 2.0]), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_walk_computes_every_node_once_on_its_own_path(
    sequences: list[list[int]], budget: int, small: int, kept: int, window: int | None, cap: float | None, seed: int
) -> None:
    trie = made(sequences)
    layer = _Layer(trie.nodes, How(0.5, window, cap), seed)
    walk = Walk(trie.nodes, budget, keep=lambda node: kept > 0 and node.order % kept == 0, small=small)
    done: list[int] = []
    tokens = 0
    for chunk in walk.chunks():
        assert chunk.first == tokens
        orders = list(chunk.starts)
        nodes = [trie.nodes[order] for order in orders]
        tokens += len(chunk.ids)
        assert len(chunk.ids) == sum(node.length for node in nodes)
        assert len(chunk.ids) <= budget or len(units(nodes, small)) == 1
        # before a forward only the open path and what the caller keeps is held
        open_ = {node.order for node in nodes[0].path()} - set(orders)
        assert {o for o in walk.stored if walk.stored[o].layers} <= open_ | {o for o in done if kept and not o % kept}
        with torch.inference_mode():
            out = chunk.plan.run(0, *layer.tensors(orders), layer.how, None)
        for order, at in chunk.starts.items():
            node = trie.nodes[order]
            assert chunk.ids[at : at + node.length].tolist() == node.tokens.tolist()
            assert chunk.positions[at : at + node.length].tolist() == list(range(node.start, node.stop))
            layer.check(order, out[at : at + node.length])
        done += orders
    assert done == list(range(len(trie.nodes)))
    wanted = [order for order in done if kept and not order % kept]
    assert sorted(walk.stored) == wanted
    for order in wanted:
        assert torch.equal(walk.stored[order].layers[0][0], layer.x[order][1])


@FAST
@given(sequences=SEQUENCES, budget=st.integers(1, 60), small=st.integers(1, 40), seed=st.integers(0, 99))
def test_a_walk_goes_on_below_keys_of_an_earlier_one(
    sequences: list[list[int]], budget: int, small: int, seed: int
) -> None:
    trie = made(sequences)
    layer = _Layer(trie.nodes, How(0.5), seed)
    stored: dict[int, Any] = {}
    upper = [node for node in trie.nodes if len(node.path()) <= 2]
    rest = [node for node in trie.nodes if len(node.path()) > 2]
    for part, keep in ((upper, True), (rest, False)):
        for chunk in Walk(part, budget, keep=lambda node, keep=keep: keep, stored=stored, small=small).chunks():
            with torch.inference_mode():
                out = chunk.plan.run(0, *layer.tensors(list(chunk.starts)), layer.how, None)
            for order, at in chunk.starts.items():
                layer.check(order, out[at : at + trie.nodes[order].length])
    assert sorted(stored) == [node.order for node in upper]


def test_a_cost_of_the_callers_bounds_forwards_too() -> None:
    trie = made([[0] * 4 + [i] * 3 for i in range(1, 9)])
    seen: list[tuple[int, int]] = []

    def cost(first: int, last: int) -> float:
        seen.append((first, last))
        return 40.0 * (last - first)

    sizes = [len(chunk.starts) for chunk in Walk(trie.nodes, 100, cost=cost, small=4).chunks()]
    assert sum(sizes) == 9 and max(sizes) == 2 and seen == [(i, i + 1) for i in range(9)]


@pytest.mark.parametrize("length", [SMALL - 1, SMALL, SMALL + 1, 3 * SMALL])
def test_one_long_sequence_is_one_forward(length: int) -> None:
    (chunk,) = Walk(made([list(range(length))]).nodes, 16).chunks()
    assert len(chunk.ids) == length and not chunk.plan.more and not chunk.plan.keepers
