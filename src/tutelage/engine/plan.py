"""From a trie of token sequences to forwards: every node computed once, in depth-first order, a bounded number of
tokens at a time.

A subtree of at most SMALL tokens is one unit: its tokens attend to one another under a tree mask. A larger node is a
unit of its own span, and everything below it attends to that span as one further part (see model/attention.py). Between
two forwards only the keys of the open path are kept, so memory is that of one forward and one path.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tutelage.engine.trie import Node
from tutelage.model.plans import Block, NewKeys, Plan, StoredKeys

SMALL = 256
"""Most tokens of a subtree that is computed as one unit."""


@dataclass
class Unit:
    """Nodes first..last (numbers in the walk's list) computed together: a whole small subtree, or one large node."""

    first: int
    last: int
    tokens: int
    large: bool
    """Whether nodes outside the unit attend to it."""

    @property
    def chain(self) -> bool:
        """Whether it is one node, so that a causal mask is its tree mask."""
        return self.last == self.first + 1


def units(nodes: Sequence[Node], small: int) -> list[Unit]:
    """The nodes (in depth-first order) divided into units; subtrees are counted over the given nodes alone."""
    orders = [node.order for node in nodes]
    numbers = {order: i for i, order in enumerate(orders)}
    subtree = [node.length for node in nodes]
    for i in range(len(nodes) - 1, -1, -1):
        above = nodes[i].parent
        if above is not None and above.order in numbers:
            subtree[numbers[above.order]] += subtree[i]
    out: list[Unit] = []
    i = 0
    while i < len(nodes):
        end = bisect_left(orders, nodes[i].last)
        whole = subtree[i] <= small
        last = end if whole else i + 1
        out.append(Unit(i, last, subtree[i] if whole else nodes[i].length, end > last))
        i = last
    return out


@dataclass
class Chunk:
    """The tokens of one forward: ids and positions int64 [N], what they attend to, and where each node's begin."""

    ids: Tensor
    positions: Tensor
    plan: Plan
    first: int
    """Tokens of the walk in the chunks before."""
    starts: dict[int, int]
    """Node order -> its first token's place in this forward."""


class Walk:
    """Cuts nodes of a trie into chunks and remembers the keys that later chunks (or the caller) need.

    nodes: in depth-first order; the parent of each is among them, or its keys are in `stored`, or it has none.
    budget: most tokens of a forward, unless one unit alone has more; small: most tokens of a unit of several nodes.
    cost(first number, last number) -> float in units of the budget lets the caller bound something else too (the
    logits). keep(node): whether its keys outlive the walk, in `stored`.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        budget: int,
        device: torch.device | None = None,
        cost: Callable[[int, int], float] | None = None,
        keep: Callable[[Node], bool] | None = None,
        stored: dict[int, StoredKeys] | None = None,
        small: int = SMALL,
    ) -> None:
        self.nodes, self.budget, self.device, self.small = nodes, budget, device, small
        self.cost = cost or (lambda first, last: 0.0)
        self.keep = keep or (lambda node: False)
        self.stored: dict[int, StoredKeys] = {} if stored is None else stored
        self._mine: dict[int, Node] = {}

    def chunks(self) -> Iterator[Chunk]:
        """The forwards, in order; each must be run (under its plan) before the next is asked for."""
        pending: list[Unit] = []
        tokens, extra, first = 0, 0.0, 0
        for unit in units(self.nodes, self.small):
            more = self.cost(unit.first, unit.last)
            if pending and (tokens + unit.tokens > self.budget or extra + more > self.budget):
                yield self._chunk(pending, first)
                first += tokens
                pending, tokens, extra = [], 0, 0.0
                self._forget(self.nodes[unit.first].order)
            pending.append(unit)
            tokens, extra = tokens + unit.tokens, extra + more
        if pending:
            yield self._chunk(pending, first)
            self._forget(self.nodes[-1].order + 1)

    def _forget(self, order: int) -> None:
        """Drop the keys of nodes that are complete: nothing from `order` on is below them."""
        for done in [o for o, node in self._mine.items() if node.last <= order]:
            node = self._mine.pop(done)
            if not self.keep(node):
                del self.stored[done]

    def _chunk(self, part: Sequence[Unit], first: int) -> Chunk:
        nodes = self.nodes[part[0].first : part[-1].last]
        lengths = np.array([node.length for node in nodes])
        begins = np.concatenate([[0], lengths.cumsum()])
        ids = np.concatenate([node.tokens for node in nodes])
        place = np.arange(begins[-1])
        owner = np.repeat(np.arange(len(nodes)), lengths)
        positions = place - begins[:-1][owner] + np.array([node.start for node in nodes])[owner]
        flat = _Flat(nodes, part[0].first, begins, self._tensor(positions), owner, self._tensor, self.small)
        after = self.nodes[part[-1].last].order if part[-1].last < len(self.nodes) else None
        plan = Plan(flat.own(part), flat.shared(part, self.stored), self._keepers(nodes, begins, after))
        starts = {node.order: int(begin) for node, begin in zip(nodes, begins)}
        return Chunk(self._tensor(ids), flat.positions, plan, first, starts)

    def _keepers(
        self, nodes: Sequence[Node], begins: np.ndarray, after: int | None
    ) -> list[Callable[[int, Tensor, Tensor], None]]:
        out = []
        for node, begin in zip(nodes, begins):
            open_ = after is not None and node.last > after
            if open_ or self.keep(node):
                kept = self.stored.setdefault(node.order, StoredKeys())
                self._mine[node.order] = node
                out.append(_keeper(kept, slice(int(begin), int(begin) + node.length)))
        return out

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def _keeper(kept: StoredKeys, span: slice) -> Callable[[int, Tensor, Tensor], None]:
    return lambda layer, key, value: kept.save(layer, key, value, span)


@dataclass
class _Flat:
    """A chunk's tokens in a row, and the blocks over them."""

    nodes: Sequence[Node]
    number: int
    """Of the first node in the walk's list."""
    begins: np.ndarray
    positions: Tensor
    owner: np.ndarray
    tensor: Callable[[np.ndarray], Tensor]
    small: int

    def at(self, number: int) -> int:
        """The first token of a node, by its number in the walk's list."""
        return int(self.begins[number - self.number])

    def below(self, node: Node) -> int:
        """One past the last token of this chunk that stands below the node."""
        orders = [n.order for n in self.nodes]
        return int(self.begins[bisect_left(orders, node.last)])

    def own(self, part: Sequence[Unit]) -> list[Block]:
        """Every unit's tokens among themselves: units of like length in one call, long ones alone."""
        small, out = [], []
        for unit in part:
            if unit.tokens > self.small or len(part) == 1 and unit.chain:
                span = slice(self.at(unit.first), self.at(unit.last))
                places = self.positions[None, span]
                out.append(
                    Block(span, NewKeys(span), causal=True, query_positions=places, key_positions=places)
                )
            else:
                small.append(unit)
        small.sort(key=lambda u: (u.chain, u.tokens))
        groups: list[list[Unit]] = []
        for unit in small:
            first = groups[-1][0] if groups else None
            if (
                first is None
                or unit.chain != first.chain
                or unit.tokens > max(1.25 * first.tokens, first.tokens + 8)
            ):
                groups.append([])
            groups[-1].append(unit)
        return out + [self._batch(group) for group in groups]

    def _batch(self, group: Sequence[Unit]) -> Block:
        """Units of like length, padded at the right; padding is the chunk's first token and is dropped."""
        width = max(u.tokens for u in group)
        starts = np.array([self.at(u.first) for u in group])
        sizes = np.array([u.tokens for u in group])
        place = np.arange(width)
        real = place < sizes[:, None]
        index = np.where(real, starts[:, None] + place, 0)
        rows = None if real.all() else self.tensor(np.flatnonzero(real))
        numbers = self.tensor(index)
        places = self.positions[numbers]
        mask = None
        if not group[0].chain:
            order = np.array([n.order for n in self.nodes])[self.owner]
            last = np.array([n.last for n in self.nodes])[self.owner]
            enter = np.where(real, order[index], -1)  # no node holds it: padding sees and is seen by nothing real
            leave = np.where(real, last[index], -1)
            seen = (enter[:, None, :] <= enter[:, :, None]) & (enter[:, :, None] < leave[:, None, :])
            seen &= self._numpy(places)[:, None, :] <= self._numpy(places)[:, :, None]
            mask = self.tensor(seen)[:, None]
        return Block(
            numbers, NewKeys(numbers), causal=mask is None, mask=mask, rows=rows, query_positions=places,
            key_positions=places,
        )  # fmt: skip

    @staticmethod
    def _numpy(x: Tensor) -> np.ndarray:
        return x.cpu().numpy()

    def shared(self, part: Sequence[Unit], stored: dict[int, StoredKeys]) -> list[Block]:
        """What descendants attend to in large nodes: kept ones of earlier chunks, then those of this one."""
        out = self._kept(stored)
        for unit in part:
            if unit.large:
                node = self.nodes[unit.first - self.number]
                span = slice(self.at(unit.first), self.at(unit.last))
                below = slice(span.stop, self.below(node))
                if below.stop > below.start:
                    out.append(self._part(below, NewKeys(span), node, span))
        return out

    def _kept(self, stored: dict[int, StoredKeys]) -> list[Block]:
        """The ancestors, outside this chunk, of its nodes; each is open over one range of tokens."""
        out: list[Block] = []
        inside = {node.order for node in self.nodes}
        done: set[int] = set()
        for number, node in enumerate(self.nodes):
            above = node.parent
            while above is not None and above.order not in inside and above.order not in done:
                done.add(above.order)
                below = slice(int(self.begins[number]), self.below(above))
                out.append(self._part(below, stored[above.order], above, None))
                above = above.parent
        return out

    def _part(self, queries: slice, keys: StoredKeys | NewKeys, node: Node, span: slice | None) -> Block:
        if span is None:
            places = torch.arange(node.start, node.stop, device=self.positions.device)[None]
        else:
            places = self.positions[None, span]
        return Block(queries, keys, query_positions=self.positions[None, queries], key_positions=places)
