"""What decoding rows attend to beside their own tokens: kept nodes, as many as possible in one attention call.

A rollout has as many kept prompts as groups; one call a prompt and a merge after each would cost more than the
attention itself. Nodes of one depth have no row in common, so those of about one length become one batched call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tutelage.engine.session import Cohort
from tutelage.engine.trie import Node
from tutelage.model.plans import Block, Keys, StackedKeys, StoredKeys


@dataclass
class Kept:
    """A kept node, its place in the chain of them, its keys, and the flat numbers of the rows below it."""

    node: Node
    depth: int
    keys: StoredKeys
    rows: list[int] = field(default_factory=list)


@dataclass
class Part:
    """One call: rows [G, T] of G nodes, padded with any row (real: the flat places that are no padding, None for all),
    against their keys at positions [G, L], of which `seen` [G, 1, 1, L] are real (None: all)."""

    rows: Tensor
    real: Tensor | None
    keys: Keys
    positions: Tensor
    seen: Tensor | None

    def block(self, positions_N: Tensor) -> Block:
        """The part in a step in which the rows' last tokens stand at these positions."""
        return Block(
            self.rows, self.keys, mask=self.seen, rows=self.real, query_positions=positions_N[self.rows],
            key_positions=self.positions,
        )  # fmt: skip


class Shared:
    """The parts of the rows that decode, and the copies of kept keys that they need; `tokens` of copies are held.

    Without room for a copy its nodes are attended to one by one, as they are.
    """

    def __init__(self) -> None:
        self._parts: list[Part] | None = None
        self._stacks: dict[tuple[int, ...], tuple[StackedKeys, int]] = {}

    @property
    def tokens(self) -> int:
        """Tokens of keys and values in the copies, padding included."""
        return sum(tokens for _, tokens in self._stacks.values())

    def moved(self) -> None:
        """Rows have left: the parts are others; copies whose nodes stay together are used on."""
        self._parts = None

    def clear(self) -> None:
        """Rows are about to join: the room is theirs, and a new node might have an old one's id."""
        self._parts = None
        self._stacks = {}

    def of(self, cohorts: Sequence[Cohort], device: torch.device, room: int) -> list[Part]:
        """The parts of all rows of the cohorts, one cohort behind another; new copies hold at most `room` tokens, less
        what those in use hold."""
        if self._parts is None:
            groups = alike(_kept(cohorts))
            idents = [tuple(id(one.keys) for one in group) for group in groups]
            self._stacks = {ident: self._stacks[ident] for ident in idents if ident in self._stacks}
            self._parts = []
            for group, ident in zip(groups, idents):
                for part, keys in self._with_keys(group, ident, room):
                    self._parts.append(_part(part, keys, device))
        return self._parts

    def _with_keys(self, group: list[Kept], ident: tuple[int, ...], room: int) -> list[tuple[list[Kept], Keys]]:
        tokens = len(group) * max(one.node.length for one in group)
        if len(group) > 1 and ident not in self._stacks and self.tokens + tokens <= room:
            self._stacks[ident] = StackedKeys([one.keys for one in group]), tokens
        if ident in self._stacks:
            return [(group, self._stacks[ident][0])]
        return [([one], one.keys) for one in group]


def _kept(cohorts: Sequence[Cohort]) -> list[Kept]:
    found: dict[tuple[int, int], Kept] = {}
    seats = [seat for cohort in cohorts for seat in cohort.seats]
    for number, seat in enumerate(seats):
        for depth, node in enumerate(seat.session.chain(seat.group)):
            key = (id(seat.session), node.order)
            if key not in found:
                found[key] = Kept(node, depth, seat.session.stored[node.order])
            found[key].rows.append(number)
    return list(found.values())


def alike(kept: Sequence[Kept]) -> list[list[Kept]]:
    """The nodes that are worth one call: of one depth, about one length, and no more padding than rows."""
    out: list[list[Kept]] = []
    most = 0  # rows of one node in the last group
    for one in sorted(kept, key=lambda k: (k.depth, k.node.length, k.node.order)):
        last = out[-1] if out else []
        most = max(most, len(one.rows))
        if (
            not last
            or one.depth != last[0].depth
            or one.node.length > max(1.25 * last[0].node.length, last[0].node.length + 8)
            or (len(last) + 1) * most > 2 * (sum(len(k.rows) for k in last) + len(one.rows))
        ):
            out.append([])
            most = len(one.rows)
        out[-1].append(one)
    return out


def _part(kept: Sequence[Kept], keys: Keys, device: torch.device) -> Part:
    rows = torch.nn.utils.rnn.pad_sequence([torch.tensor(k.rows) for k in kept], batch_first=True, padding_value=-1)
    places = torch.arange(max(k.node.length for k in kept))
    lengths = torch.tensor([k.node.length for k in kept])[:, None]
    seen, real = places < lengths, rows >= 0
    positions = places + torch.tensor([k.node.start for k in kept])[:, None]
    return Part(
        rows.clamp(min=0).to(device),
        None if bool(real.all()) else real.flatten().nonzero().squeeze(-1).to(device),
        keys,
        positions.to(device),
        None if bool(seen.all()) else seen[:, None, None].to(device),
    )
