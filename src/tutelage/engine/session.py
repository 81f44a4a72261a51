"""One call's prompts in a trie: which rows there are, which keys they share, and what became of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tutelage.engine.pool import Pool
from tutelage.engine.prefixes import Prefix, Prefixes
from tutelage.engine.rows import Finished, Request, Rows
from tutelage.engine.trie import Node, Trie
from tutelage.model.plans import StoredKeys

SHARE = 16
"""Fewest tokens for which a common beginning is kept apart rather than copied into every row."""


@dataclass(eq=False)
class Group:
    """One prompt and the rows (n samples) that continue it."""

    number: int
    requests: Sequence[Request]
    leaf: Node
    own: int = 0
    """Depth from which on the prompt is in the rows' own buffers; what is above is shared."""

    @property
    def most(self) -> int:
        """Tokens of a row's own buffer at most: the last sampled token is never fed."""
        return self.leaf.stop - self.own + max(max(r.params.max_tokens for r in self.requests) - 1, 0)


class Session:
    """The prompts of one call: groups in the trie's order, the shared nodes' keys, and the results."""

    def __init__(
        self,
        groups: Sequence[Sequence[Request]],
        cancelled: threading.Event | None = None,
        on_done: Callable[[int], object] | None = None,
        prefixes: Prefixes | None = None,
    ) -> None:
        """cancelled: set by whoever does not want the results any more; on_done(1): a group has ended; prefixes: kept
        beginnings of earlier sessions."""
        self.on_done = on_done
        self.results: list[list[Finished | None]] = [[None] * len(g) for g in groups]
        self.left = sum(map(len, groups))
        self.cancelled = cancelled or threading.Event()
        self.error: BaseException | None = None
        """Why nothing more will come."""
        self.waited = True
        """Whether a thread waits for it, which can drive the scheduler."""
        self.turn = threading.Event()
        """Set when the session is over, or when its thread is to drive the scheduler."""
        self.stored: dict[int, StoredKeys] = {}
        self.ends: dict[int, Tensor] = {}
        """Logits [V] after a kept node at which a prompt ends."""
        self.users: dict[int, int] = {}
        """Rows that still need a kept node."""
        self.saved = 0
        """Tokens that are not computed, as earlier sessions had them."""
        self.known: dict[int, StoredKeys] = {}
        """Keys of nodes that one row alone needs, from earlier sessions: they are copied into its buffer."""
        self.wanted: dict[int, Sequence[Node]] = {}
        """Group number -> the nodes of a beginning that is to be kept for later sessions."""
        if not groups:
            self.pending: list[Group] = []
            return
        found = [prefixes.find(g[0].prompt) if prefixes is not None else (None, 0) for g in groups]
        whole = [np.asarray(g[0].prompt, dtype=np.int64) for g in groups]
        # a beginning that is a sequence of its own ends with a node of the trie
        ends = [(i, is_kept, size) for i, (prefix, new) in enumerate(found) for is_kept, size in
                ((True, len(prefix.tokens) if prefix is not None else 0), (False, new)) if size]  # fmt: skip
        self.trie = Trie([*whole, *(whole[i][:size] for i, _, size in ends)])
        made = [Group(i, g, leaf) for i, (g, leaf) in enumerate(zip(groups, self.trie.leaf))]
        self._share(made)
        self.pending = sorted(made, key=lambda g: g.leaf.order, reverse=True)
        self._begin(len(groups), found, ends)

    def _share(self, made: Sequence[Group]) -> None:
        """Which nodes are kept apart, how many rows need each, and where every group's own tokens begin."""
        below = [0] * len(self.trie.nodes)
        for group in made:
            below[group.leaf.order] += len(group.requests)
        self.shared = [False] * len(self.trie.nodes)
        for node in reversed(self.trie.nodes):
            below[node.order] += sum(below[child.order] for child in node.children)
            long = node.length >= SHARE or any(self.shared[child.order] for child in node.children)
            self.shared[node.order] = below[node.order] >= 2 and long
        for group in made:  # samples of one prompt never copy SHARE or more of its tokens
            kept = self.chain(group)
            if len(group.requests) > 1 and group.leaf.stop - (kept[-1].stop if kept else 0) >= SHARE:
                for node in group.leaf.path():
                    self.shared[node.order] = True
        for group in made:
            for node in self.chain(group):
                group.own = node.stop
                self.users[node.order] = self.users.get(node.order, 0) + len(group.requests)

    def _begin(
        self, count: int, found: Sequence[tuple[Prefix | None, int]], ends: Sequence[tuple[int, bool, int]]
    ) -> None:
        """Take over the beginnings that earlier sessions kept, and note those to be kept for later ones. ends: (group,
        whether it is kept already, its tokens) of each of the trie's sequences behind the `count` prompts."""
        last = {node.order for node in self.trie.leaf[:count]}
        for (i, is_kept, _), end in zip(ends, self.trie.leaf[count:]):
            if not is_kept:
                self.wanted[i] = end.path()
                continue
            prefix = found[i][0]
            assert prefix is not None
            for node in end.path():
                if node.order in last:  # where a prompt ends its logits are needed
                    break
                table = self.stored if self.shared[node.order] else self.known
                if node.order not in table:
                    table[node.order] = prefix.part(node.start, node.stop)
                    self.saved += node.length
        self._wanted = {node.order for path in self.wanted.values() for node in path}

    @property
    def prompt_tokens(self) -> int:
        """Distinct tokens of the prompts: what is computed of them."""
        return sum(node.length for node in self.trie.nodes) - self.saved if self.results else 0

    @property
    def over(self) -> bool:
        """Whether nothing more is to be computed for it."""
        return not self.left or self.error is not None or self.cancelled.is_set()

    def keeps(self, node: Node) -> bool:
        """Whether the node's keys outlive its forward: for the rows below it, or for later sessions."""
        return self.shared[node.order] or node.order in self._wanted

    def chain(self, group: Group) -> list[Node]:
        """The shared nodes above a group's own tokens, from the top."""
        return [node for node in group.leaf.path() if self.shared[node.order]]

    def release(self, group: Group, rows: int = 1) -> None:
        """Rows of the group are done: drop the keys that nobody needs any more."""
        for node in self.chain(group):
            self.users[node.order] -= rows
            if not self.users[node.order]:
                self.ends.pop(node.order, None)
                self.stored.pop(node.order, None)

    def kept_tokens(self) -> int:
        """Tokens whose keys are kept."""
        return sum(self.trie.nodes[order].length for order in self.stored)

    def forget(self) -> None:
        """Drop all kept keys; what pending rows need of them is computed again."""
        self.stored.clear()
        self.ends.clear()


class Source(Protocol):
    """Where sessions come from that no thread waits for (see live.py)."""

    def take_in(self) -> Session | None:
        """Before a step: what has arrived."""

    def flush(self) -> None:
        """After a step: say what happened."""


@dataclass(eq=False)
class Seat:
    """Where a row belongs."""

    session: Session
    group: Group
    sample: int


@dataclass(eq=False)
class Cohort:
    """Rows whose own tokens fit one capacity. own [n]: tokens in the pool; base [n]: position of the first of them."""

    pool: Pool
    rows: Rows
    seats: list[Seat] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.own = torch.zeros(0, dtype=torch.int64, device=self.rows.rules.device)
        self.base = self.own.clone()

    def appender(self, span: slice) -> Callable[[int, Tensor, Tensor], None]:
        """Writes the tokens of a forward's span, one a row, behind the rows' own."""
        rows, columns = torch.arange(len(self.rows), device=self.own.device), self.own.clone()
        return lambda layer, key, value: self.pool.write(layer, rows, columns, key[:, span], value[:, span])

    def leave(self, done: Sequence[int]) -> None:
        """Take the given rows out and close the gaps with rows from the end."""
        gone = set(done)
        left = len(self.seats) - len(done)
        movers = [i for i in range(left, len(self.seats)) if i not in gone]
        holes = [i for i in done if i < left]
        order = list(range(left))
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        if movers:
            self.pool.move(movers, holes, int(self.own[torch.tensor(movers)].max()))
        self.rows.select(order)
        self.seats = [self.seats[i] for i in order]
        index = torch.tensor(order, dtype=torch.int64, device=self.own.device)
        self.own, self.base = self.own[index], self.base[index]
        self.pool.trim(len(order), self.own)
