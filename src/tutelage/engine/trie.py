"""A radix tree of token sequences: what several of them begin with is one node, and is computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(eq=False)
class Node:
    """Tokens start..stop of the sequences below it (those of `source`, which is one of them).

    order: place in depth-first order. last: one past the last place of its subtree, so that descendants are a range.
    """

    source: np.ndarray
    start: int
    stop: int
    parent: Node | None = None
    children: list[Node] = field(default_factory=list)
    order: int = -1
    last: int = -1
    subtree: int = 0
    """Tokens in the node and everything below."""

    @property
    def length(self) -> int:
        """Tokens of the node itself."""
        return self.stop - self.start

    @property
    def tokens(self) -> np.ndarray:
        """The node's own tokens, int64."""
        return self.source[self.start : self.stop]

    def path(self) -> list[Node]:
        """The nodes from the top down to this one."""
        nodes: list[Node] = []
        node: Node | None = self
        while node is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    def at(self, depth: int) -> Node:
        """The node of this path that holds the token at `depth` (0 is the first)."""
        node = self
        while node.start > depth:
            assert node.parent is not None
            node = node.parent
        return node


class Trie:
    """The radix tree of `sequences` (int64 arrays, none empty). `leaf[i]` is the node at whose end sequence i ends."""

    def __init__(self, sequences: Sequence[np.ndarray]) -> None:
        self.roots: list[Node] = []
        self.leaf: list[Node] = [None] * len(sequences)  # type: ignore[list-item]
        keys = [s.astype(">u4").tobytes() for s in sequences]  # big-endian bytes sort as the tokens do
        path: list[Node] = []  # nodes from the top to where the last sequence ended
        before: np.ndarray | None = None
        for i in sorted(range(len(sequences)), key=keys.__getitem__):
            tokens = sequences[i]
            shared = 0 if before is None else _common(before, tokens)
            while path and path[-1].start >= shared:
                path.pop()
            if path and path[-1].stop > shared:
                path[-1] = self._split(path[-1], shared)
            if shared < len(tokens):
                node = Node(tokens, shared, len(tokens), path[-1] if path else None)
                (path[-1].children if path else self.roots).append(node)
                path.append(node)
            self.leaf[i] = path[-1]
            before = tokens
        self.nodes = list(self._walk())

    def _split(self, node: Node, depth: int) -> Node:
        """Cut a node at `depth`: the upper part takes its place, the node keeps the rest (and stays a leaf)."""
        upper = Node(node.source, node.start, depth, node.parent, [node])
        siblings = node.parent.children if node.parent is not None else self.roots
        siblings[-1] = upper  # in sorted order the node being cut is always the youngest
        node.start, node.parent = depth, upper
        return upper

    def _walk(self) -> Iterator[Node]:
        count = 0
        stack: list[tuple[Node, bool]] = [(root, False) for root in reversed(self.roots)]
        while stack:
            node, done = stack.pop()
            if done:
                node.last = count
                node.subtree = node.length + sum(child.subtree for child in node.children)
                continue
            node.order = count
            count += 1
            yield node
            stack.append((node, True))
            stack += [(child, False) for child in reversed(node.children)]


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Tokens that both begin with."""
    size = min(len(a), len(b))
    different = a[:size] != b[:size]
    return int(different.argmax()) if different.any() else size
