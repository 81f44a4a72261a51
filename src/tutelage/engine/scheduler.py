"""Continuous batching: rows join and leave at every step, and what prompts begin with alike is computed and kept once.

A session is one call's prompts in a trie. Its rows are admitted in the trie's order as the memory budget allows, so
that rows with a common beginning run together; shared nodes keep their keys as long as a row needs them. Several
threads may run sessions at once: each drives steps, and every step advances the rows of all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.engine.compiled import Decode
from tutelage.engine.plan import Chunk, Walk
from tutelage.engine.pool import Pool, PoolKeys
from tutelage.engine.rows import Finished, Request, Rows, Rules
from tutelage.engine.trie import Node, Trie
from tutelage.model.attention import Block, Plan, StoredKeys, using
from tutelage.model.forward import call

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
    ) -> None:
        """cancelled: set by whoever does not want the results any more; on_done(1): a group has ended."""
        self.on_done = on_done
        self.results: list[list[Finished | None]] = [[None] * len(g) for g in groups]
        self.left = sum(map(len, groups))
        self.cancelled = cancelled or threading.Event()
        self.stored: dict[int, StoredKeys] = {}
        self.ends: dict[int, Tensor] = {}
        """Logits [V] after a kept node at which a prompt ends."""
        self.users: dict[int, int] = {}
        """Rows that still need a kept node."""
        if not groups:
            self.pending: list[Group] = []
            return
        self.trie = Trie([np.asarray(g[0].prompt, dtype=np.int64) for g in groups])
        made = [Group(i, g, leaf) for i, (g, leaf) in enumerate(zip(groups, self.trie.leaf))]
        below = [0] * len(self.trie.nodes)
        for group in made:
            below[group.leaf.order] += len(group.requests)
        self.shared = [False] * len(self.trie.nodes)
        for node in reversed(self.trie.nodes):
            below[node.order] += sum(below[child.order] for child in node.children)
            long = node.length >= SHARE or any(self.shared[child.order] for child in node.children)
            self.shared[node.order] = below[node.order] >= 2 and long
        for group in made:
            for node in self.chain(group):
                group.own = node.stop
                self.users[node.order] = self.users.get(node.order, 0) + len(group.requests)
        self.pending = sorted(made, key=lambda g: g.leaf.order, reverse=True)

    def keeps(self, node: Node) -> bool:
        """Whether the node's keys are kept for the rows below it."""
        return self.shared[node.order]

    def chain(self, group: Group) -> list[Node]:
        """The shared nodes above a group's own tokens, from the top."""
        return [node for node in group.leaf.path() if self.shared[node.order]]

    def release(self, group: Group, rows: int = 1) -> int:
        """Rows of the group are done: drop the keys that nobody needs any more; returns their tokens."""
        freed = 0
        for node in self.chain(group):
            self.users[node.order] -= rows
            if not self.users[node.order]:
                self.ends.pop(node.order, None)
                if self.stored.pop(node.order, None) is not None:
                    freed += node.length
        return freed


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


class Scheduler:
    """Decodes sessions on one model that honours plans.

    token_bytes: keys and values of one token over all layers; budget: bytes of them at most; max_rows: rows decoded at
    once (a group's rows always run together); max_tokens: tokens of a prefill forward.
    """

    def __init__(
        self, model: Any, rules: Rules, token_bytes: int, budget: int, max_rows: int = 256, max_tokens: int = 2048,
        compiled: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.rules, self.max_rows, self.max_tokens = model, rules, max_rows, max_tokens
        self.decode = Decode(model, compiled)
        self.capacity = budget // max(1, token_bytes)
        """Tokens that the budget holds."""
        self.used = 0
        self.sessions: list[Session] = []
        self.cohorts: dict[int, Cohort] = {}
        self._lock = threading.Lock()
        self._parts: list[tuple[Session, Node, Tensor]] | None = None

    def never_fits(self, prompt: int, n: int, new: int) -> str | None:
        """Why n samples of `new` tokens after a prompt of `prompt` can never be decoded, or None."""
        need = prompt + n * (new + (0 if n > 1 and prompt >= SHARE else prompt))
        if need <= self.capacity:
            return None
        return (
            f"the request needs keys and values of {need} tokens ({prompt} of the prompt, {n} x {new} new), "
            f"and the budget holds {self.capacity}"
        )

    def run(self, session: Session) -> None:
        """Step until every row of the session has ended. An error ends all sessions that run."""
        with self._lock:
            self.sessions.append(session)
        while True:
            with self._lock:
                if session not in self.sessions:
                    return
                if not session.left or session.cancelled.is_set():
                    self._drop(session)
                    return
                try:
                    self.step()
                except BaseException:
                    self._clear()
                    raise

    def step(self) -> None:
        """Admit what fits, then one token for every row."""
        admitted = self._admit()
        if admitted:
            self._prefill(admitted)
        if any(len(c.rows) for c in self.cohorts.values()):
            self._decode()

    # admission

    def _admit(self) -> list[tuple[Session, Group]]:
        live = sum(len(c.rows) for c in self.cohorts.values())
        out: list[tuple[Session, Group]] = []
        tokens = 0
        for session in self.sessions:
            fresh: set[int] = set()
            while session.pending:
                group = session.pending[-1]
                new = [n for n in session.chain(group) if n.order not in session.stored and n.order not in fresh]
                need = len(group.requests) * group.most + sum(n.length for n in new)
                full = live + len(group.requests) > self.max_rows or self.used + need > self.capacity
                if full and (live or out):
                    return out
                if out and tokens + group.leaf.stop > self.max_tokens:
                    return out
                session.pending.pop()
                fresh |= {n.order for n in new}
                tokens += sum(n.length for n in new) + group.leaf.stop - group.own
                self.used += need
                live += len(group.requests)
                out.append((session, group))
        return out

    # prefill

    def _prefill(self, admitted: Sequence[tuple[Session, Group]]) -> None:
        for session in dict.fromkeys(s for s, _ in admitted):
            groups = [g for s, g in admitted if s is session]
            places = self._seat(session, groups)
            first: dict[int, Tensor] = {}
            nodes = {n.order: n for g in groups for n in g.leaf.path() if n.order not in session.stored}
            walk = Walk(
                [nodes[o] for o in sorted(nodes)], self.max_tokens, self.rules.device, keep=session.keeps,
                stored=session.stored,
            )  # fmt: skip
            for chunk in walk.chunks() if nodes else ():
                self._chunk(session, groups, chunk, places, first)
            self._first_tokens(first, session)
        self._parts = None

    def _seat(self, session: Session, groups: Sequence[Group]) -> dict[int, tuple[Cohort, int]]:
        """Give every row a place at the end of its cohort: group number -> (cohort, the place of its first row)."""
        places: dict[int, tuple[Cohort, int]] = {}
        for group in groups:
            size = 1 << max(5, (group.most - 1).bit_length())
            if size not in self.cohorts:
                self.cohorts[size] = Cohort(Pool(size), Rows(self.rules))
            cohort = self.cohorts[size]
            places[group.number] = (cohort, len(cohort.seats))
            cohort.seats += [Seat(session, group, i) for i in range(len(group.requests))]
        for cohort in {id(c): c for c, _ in places.values()}.values():
            cohort.pool.reserve(len(cohort.seats), cohort.own)
        return places

    def _chunk(
        self, session: Session, groups: Sequence[Group], chunk: Chunk, places: dict[int, tuple[Cohort, int]],
        first: dict[int, Tensor],
    ) -> None:  # fmt: skip
        """One prefill forward: own tokens into the rows' buffers, and the logits at which prompts end."""
        copies: dict[int, list[tuple[int, int, int, int]]] = {}
        cohorts: dict[int, Cohort] = {}
        ends: dict[int, int] = {}
        for group in groups:
            cohort, place = places[group.number]
            for node in group.leaf.path():
                if node.order in chunk.starts and node.start >= group.own:
                    at = chunk.starts[node.order]
                    cohorts[id(cohort)] = cohort
                    copies.setdefault(id(cohort), []).extend(
                        (at, place + i, node.start - group.own, node.length) for i in range(len(group.requests))
                    )
            if group.leaf.order in chunk.starts:
                ends[group.leaf.order] = chunk.starts[group.leaf.order] + group.leaf.length - 1
        keepers = [_writer(cohorts[key].pool, spans, self.rules.device) for key, spans in copies.items()]
        chunk.plan.keepers = [*chunk.plan.keepers, *keepers]
        wanted = torch.tensor(list(ends.values()) or [0], device=self.rules.device)
        logits = self._forward(chunk.ids, chunk.positions, chunk.plan, wanted)
        for row, order in enumerate(ends):
            first[order] = logits[row]
            if session.shared[order]:
                session.ends[order] = logits[row]

    def _first_tokens(self, first: dict[int, Tensor], session: Session) -> None:
        """The rows join their cohorts and sample their first token."""
        device = self.rules.device
        for cohort in list(self.cohorts.values()):
            old = len(cohort.rows)
            new = cohort.seats[old:]
            if not new:
                continue
            known = {**session.ends, **first}
            logits = torch.stack([known[seat.group.leaf.order] for seat in new])
            cohort.rows.join([s.group.requests[s.sample] for s in new], logits.shape[1])
            own = torch.tensor([s.group.leaf.stop - s.group.own for s in new], device=device)
            base = torch.tensor([s.group.own for s in new], device=device)
            cohort.own, cohort.base = torch.cat([cohort.own, own]), torch.cat([cohort.base, base])
            cohort.rows.draw(logits, old)
            self._retire(cohort)

    # decoding

    def _decode(self) -> None:
        cohorts = [c for c in self.cohorts.values() if len(c.rows)]
        blocks, keepers, at = [], [], 0
        for cohort in cohorts:
            count = len(cohort.rows)
            span = slice(at, at + count)
            keepers.append(_appender(cohort, span))
            blocks.append(self._own_block(cohort, span))
            at += count
        ids = torch.cat([c.rows.last for c in cohorts])
        positions = torch.cat([c.base + c.own for c in cohorts])
        more = [
            Block(
                index[None], session.stored[node.order], query_positions=positions[index][None],
                key_positions=torch.arange(node.start, node.stop, device=self.rules.device)[None],
            )
            for session, node, index in self._shared_parts(cohorts)
        ]  # fmt: skip
        with using(self.model, Plan(blocks, more, keepers)):
            logits = self.decode(ids, positions)[0].float()
        at = 0
        for cohort in cohorts:
            count = len(cohort.rows)
            cohort.own += 1
            cohort.rows.draw(logits[at : at + count])
            at += count
            self._retire(cohort)

    def _own_block(self, cohort: Cohort, span: slice) -> Block:
        """Each row's last token against the row's own tokens, that token included."""
        lengths = cohort.own + 1
        longest = int(lengths.max())
        place = torch.arange(longest, device=self.rules.device)
        mask = None if int(lengths.min()) == longest else (place < lengths[:, None])[:, None, None]
        return Block(
            span, PoolKeys(cohort.pool, len(cohort.rows), longest), mask=mask, single=True,
            query_positions=(cohort.base + cohort.own)[:, None], key_positions=cohort.base[:, None] + place,
        )  # fmt: skip

    def _shared_parts(self, cohorts: Sequence[Cohort]) -> list[tuple[Session, Node, Tensor]]:
        """(session, kept node, the flat numbers of the rows below it), until rows join or leave."""
        if self._parts is None:
            found: dict[tuple[int, int], tuple[Session, Node, list[int]]] = {}
            number = 0
            for cohort in cohorts:
                for seat in cohort.seats:
                    for node in seat.session.chain(seat.group):
                        key = (id(seat.session), node.order)
                        found.setdefault(key, (seat.session, node, []))[2].append(number)
                    number += 1
            device = self.rules.device
            self._parts = [(s, n, torch.tensor(rows, device=device)) for s, n, rows in found.values()]
        return self._parts

    def _forward(self, ids: Tensor, positions: Tensor, plan: Plan, wanted: Tensor) -> Tensor:
        """float32 logits [M, V] at the wanted places."""
        with using(self.model, plan):
            logits = call(
                self.model, input_ids=ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=wanted
            ).logits[0]  # fmt: skip
        if logits.shape[0] != len(wanted):  # a family that gives the logits of all
            logits = logits[wanted]
        return logits.float()

    # leaving

    def _retire(self, cohort: Cohort) -> None:
        """Deliver the rows that have ended and close the gaps with rows from the end."""
        done = cohort.rows.ended()
        if not done:
            return
        for i, result in zip(done, cohort.rows.results(done)):
            seat = cohort.seats[i]
            seat.session.results[seat.group.number][seat.sample] = result
            seat.session.left -= 1
            if seat.session.on_done and None not in seat.session.results[seat.group.number]:
                seat.session.on_done(1)
        self._leave(cohort, done)

    def _leave(self, cohort: Cohort, done: Sequence[int]) -> None:
        for i in done:
            seat = cohort.seats[i]
            self.used -= seat.group.most + seat.session.release(seat.group)
        gone = set(done)
        left = len(cohort.seats) - len(done)
        movers = [i for i in range(left, len(cohort.seats)) if i not in gone]
        holes = [i for i in done if i < left]
        order = list(range(left))
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        if movers:
            cohort.pool.move(movers, holes, int(cohort.own[torch.tensor(movers)].max()))
        cohort.rows.select(order)
        cohort.seats = [cohort.seats[i] for i in order]
        index = torch.tensor(order, dtype=torch.int64, device=self.rules.device)
        cohort.own, cohort.base = cohort.own[index], cohort.base[index]
        if not order:  # give the memory back
            del self.cohorts[cohort.pool.capacity]
        self._parts = None

    def _drop(self, session: Session) -> None:
        """Take a session's rows out, finished or not."""
        self.sessions.remove(session)
        for cohort in list(self.cohorts.values()):
            self._leave(cohort, [i for i, seat in enumerate(cohort.seats) if seat.session is session])
        session.pending = []

    def _clear(self) -> None:
        """After an error nothing can be trusted: forget every row."""
        self.sessions, self.cohorts, self.used, self._parts = [], {}, 0, None


def _spans(spans: Iterable[tuple[int, int, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(token, row, column, length) -> flat token, row and column numbers."""
    parts = [(at + np.arange(n), np.full(n, row), column + np.arange(n)) for at, row, column, n in spans]
    return tuple(np.concatenate(x) for x in zip(*parts))  # type: ignore[return-value]


def _writer(pool: Pool, spans: Sequence[tuple[int, int, int, int]], device: torch.device) -> Any:
    tokens, rows, columns = (torch.from_numpy(x).to(device) for x in _spans(spans))
    return lambda layer, key, value: pool.write(layer, rows, columns, key[:, tokens], value[:, tokens])


def _appender(cohort: Cohort, span: slice) -> Any:
    rows, columns = torch.arange(len(cohort.rows), device=cohort.own.device), cohort.own.clone()
    return lambda layer, key, value: cohort.pool.write(layer, rows, columns, key[:, span], value[:, span])
