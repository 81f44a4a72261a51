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
from tutelage.model.plans import Block, Keys, StoredKeys, side_by_side


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


def shared_parts(cohorts: Sequence[Cohort], device: torch.device) -> list[Part]:
    """The parts of all rows of the cohorts, one cohort behind another; they hold until a row joins or leaves."""
    found: dict[tuple[int, int], Kept] = {}
    seats = [seat for cohort in cohorts for seat in cohort.seats]
    for number, seat in enumerate(seats):
        for depth, node in enumerate(seat.session.chain(seat.group)):
            key = (id(seat.session), node.order)
            if key not in found:
                found[key] = Kept(node, depth, seat.session.stored[node.order])
            found[key].rows.append(number)
    return [_part(together, device) for together in alike(list(found.values()))]


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


def _part(kept: Sequence[Kept], device: torch.device) -> Part:
    rows = torch.nn.utils.rnn.pad_sequence([torch.tensor(k.rows) for k in kept], batch_first=True, padding_value=-1)
    places = torch.arange(max(k.node.length for k in kept))
    lengths = torch.tensor([k.node.length for k in kept])[:, None]
    seen, real = places < lengths, rows >= 0
    positions = places + torch.tensor([k.node.start for k in kept])[:, None]
    return Part(
        rows.clamp(min=0).to(device),
        None if bool(real.all()) else real.flatten().nonzero().squeeze(-1).to(device),
        side_by_side([k.keys for k in kept]),
        positions.to(device),
        None if bool(seen.all()) else seen[:, None, None].to(device),
    )
