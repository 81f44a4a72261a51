"""Continuous batching: rows join and leave at every step, and what prompts begin with alike is computed and kept once.

A session is one call's prompts in a trie. Its rows are admitted in the trie's order as the memory budget allows, so
that rows with a common beginning run together; shared nodes keep their keys as long as a row needs them. Several
threads may run sessions at once: one of them drives, and every step advances the rows of all.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tutelage.engine.compiled import Compiled, Decode
from tutelage.engine.parts import Shared
from tutelage.engine.plan import Chunk, Walk
from tutelage.engine.pool import Pool, PoolKeys, writer
from tutelage.engine.prefixes import Prefixes
from tutelage.engine.rows import Rows, Rules
from tutelage.engine.session import SHARE, Cohort, Group, Seat, Session, Source
from tutelage.engine.trie import Node
from tutelage.model.attention import using
from tutelage.model.forward import call
from tutelage.model.plans import Block, Plan, StoredKeys


class Scheduler:
    """Decodes sessions on one model that honours plans.

    token_bytes: keys and values of one token over all layers; budget: bytes of them at most; max_rows: rows decoded at
    once (a group's rows always run together); max_tokens: tokens of a prefill forward; prefix_budget: further bytes for
    beginnings kept from one session to the next (prefixes.py).
    """

    def __init__(
        self, model: Any, rules: Rules, token_bytes: int, budget: int, max_rows: int = 256, max_tokens: int = 2048,
        compiled: Compiled = False, prefix_budget: int = 0,
    ) -> None:  # fmt: skip
        self.model, self.rules, self.max_rows, self.max_tokens = model, rules, max_rows, max_tokens
        self.decode = Decode(model, compiled)
        self.token_bytes = token_bytes
        self.capacity = budget // max(1, token_bytes)
        """Tokens that the budget holds."""
        self.sessions: list[Session] = []
        self.lives: list[Source] = []
        self.prefixes = Prefixes(prefix_budget // max(1, token_bytes)) if prefix_budget else None
        self.cohorts: dict[int, Cohort] = {}
        self._gate = threading.Lock()
        self._incoming: list[Session] = []
        self._driven = False
        self._shared = Shared()

    def never_fits(self, prompt: int, n: int, new: int) -> str | None:
        """Why n samples of `new` tokens after a prompt of `prompt` can never be decoded, or None."""
        new = max(new - 1, 0)  # the last token is never fed
        need = prompt + new if n == 1 else min(prompt, SHARE - 1) * n + prompt + n * new
        if need <= self.capacity:
            return None
        return (
            f"the request needs keys and values of {need} tokens ({prompt} of the prompt, {n} x {new} new; "
            f"{need * self.token_bytes} bytes), and the budget holds {self.capacity} "
            f"({self.capacity * self.token_bytes} bytes): raise kv_bytes, or ask for fewer or shorter samples"
        )

    # driving

    def run(self, session: Session) -> None:
        """Return when the session is over. One of the threads that wait here drives; its error is every session's."""
        with self._gate:
            self._incoming.append(session)
            mine, self._driven = not self._driven, True
        if not mine:
            session.turn.wait()
            if session not in self.sessions:  # settled by another thread
                return
        try:
            while True:
                with self._gate:
                    self.sessions += self._incoming
                    self._incoming = []
                self.sessions += [s for s in [live.take_in() for live in self.lives] if s is not None]
                self._settle()
                if session.over:
                    return
                self.step()
                for live in self.lives:
                    live.flush()
        except BaseException as problem:
            self._fail(problem)
            raise
        finally:
            self._hand_over(session)

    def _settle(self) -> None:
        """Let go of the sessions that are over."""
        for session in [s for s in self.sessions if s.over]:
            self._drop(session)
            session.turn.set()

    def _hand_over(self, session: Session) -> None:
        with self._gate:
            self.sessions += self._incoming
            self._incoming = []
            next_ = next((s for s in self.sessions if s.waited), None)
            self._driven = next_ is not None
            if next_ is not None:
                next_.turn.set()

    def step(self) -> None:
        """Admit what fits, then one token for every row."""
        admitted = self._admit()
        if admitted:
            self._prefill(admitted)
        if any(len(c.rows) for c in self.cohorts.values()):
            self._decode()

    # admission

    def used(self) -> int:
        """Tokens of keys and values that are held: pools, free places included, and kept nodes."""
        pools = sum(cohort.pool.tokens for cohort in self.cohorts.values())
        return pools + sum(session.kept_tokens() for session in self.sessions)

    def _size(self, session: Session, group: Group) -> int:
        """Capacity of the pool that a group's rows go to: a power of two, or exact where that alone would not fit."""
        size = 1 << max(5, (group.most - 1).bit_length())
        shared = sum(node.length for node in session.chain(group))
        return size if shared + len(group.requests) * size <= self.capacity else max(1, group.most)

    def _admit(self) -> list[tuple[Session, Group, int]]:
        """(session, group, pool capacity) of what joins now."""
        out: list[tuple[Session, Group, int]] = []
        if not any(session.pending for session in self.sessions):
            return out
        live, used, tokens = sum(len(c.rows) for c in self.cohorts.values()), self.used(), 0
        free = {size: c.pool.rows - len(c.seats) for size, c in self.cohorts.items()}
        for session in self.sessions:
            fresh: set[int] = set()
            while session.pending:
                group = session.pending[-1]
                rows, size = len(group.requests), self._size(session, group)
                new = self._missing(session, group, fresh)
                need = max(0, rows - free.get(size, 0)) * size + sum(n.length for n in new)
                if live + rows > self.max_rows or used + need > self.capacity:
                    if live:
                        return out
                    if used + need > self.capacity:  # kept keys that only pending rows want are in the way
                        self._forget()
                        new, used, free = self._missing(session, group, fresh), 0, {}
                        need = rows * size + sum(n.length for n in new)
                if out and tokens + group.leaf.stop > self.max_tokens:
                    return out
                session.pending.pop()
                fresh |= {n.order for n in new}
                tokens += sum(n.length for n in new) + group.leaf.stop - group.own
                used, live = used + need, live + rows
                free[size] = max(0, free.get(size, 0) - rows)
                out.append((session, group, size))
        return out

    @staticmethod
    def _missing(session: Session, group: Group, fresh: set[int]) -> list[Node]:
        """Shared nodes of the group that are neither kept nor about to be."""
        return [n for n in session.chain(group) if n.order not in session.stored and n.order not in fresh]

    def _forget(self) -> None:
        for session in self.sessions:
            session.forget()

    # prefill

    def _prefill(self, admitted: Sequence[tuple[Session, Group, int]]) -> None:
        self._shared.clear()
        for session in dict.fromkeys(s for s, _, _ in admitted):
            groups = [g for s, g, _ in admitted if s is session]
            places = self._seat(session, [(g, size) for s, g, size in admitted if s is session])
            first: dict[int, Tensor] = {}
            path = {n.order: n for g in groups for n in g.leaf.path()}
            stored = {**session.stored, **{o: k for o, k in session.known.items() if o in path}}
            nodes = [path[o] for o in sorted(path) if o not in stored]
            walk = Walk(nodes, self.max_tokens, self.rules.device, keep=session.keeps, stored=stored)
            for chunk in walk.chunks() if nodes else ():
                self._chunk(session, groups, chunk, places, first)
            self._keep(session, groups, places, stored)
            self._first_tokens(first, session)

    def _seat(self, session: Session, groups: Sequence[tuple[Group, int]]) -> dict[int, tuple[Cohort, int]]:
        """Give every row a place at the end of its cohort: group number -> (cohort, the place of its first row)."""
        places: dict[int, tuple[Cohort, int]] = {}
        for group, size in groups:
            if size not in self.cohorts:
                self.cohorts[size] = Cohort(Pool(size), Rows(self.rules))
            cohort = self.cohorts[size]
            places[group.number] = (cohort, len(cohort.seats))
            cohort.seats += [Seat(session, group, i) for i in range(len(group.requests))]
        kept = {n.order: n.length for group, _ in groups for n in session.chain(group) if n.order not in session.stored}
        spare = self.capacity - self.used() - sum(kept.values())
        for cohort in {id(c): c for c, _ in places.values()}.values():
            spare -= max(0, len(cohort.seats) - cohort.pool.rows) * cohort.pool.capacity
        for cohort in {id(c): c for c, _ in places.values()}.values():
            least = max(cohort.pool.tokens, len(cohort.seats) * cohort.pool.capacity)
            cohort.pool.reserve(len(cohort.seats), cohort.own, max(0, spare))
            spare -= cohort.pool.tokens - least
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
        keepers = [writer(cohorts[key].pool, spans, self.rules.device) for key, spans in copies.items()]
        chunk.plan.keepers = [*chunk.plan.keepers, *keepers]
        wanted = torch.tensor(list(ends.values()) or [0], device=self.rules.device)
        logits = self._forward(chunk.ids, chunk.positions, chunk.plan, wanted)
        for row, order in enumerate(ends):
            first[order] = logits[row]
            if session.shared[order]:
                session.ends[order] = logits[row]

    def _keep(
        self, session: Session, groups: Sequence[Group], places: dict[int, tuple[Cohort, int]],
        stored: dict[int, StoredKeys],
    ) -> None:  # fmt: skip
        """After a prefill: what later rows, the rows themselves and later sessions need of the keys."""
        for group in groups:
            cohort, place = places[group.number]
            for node in group.leaf.path():
                if session.shared[node.order]:
                    session.stored[node.order] = stored[node.order]
                elif node.order in session.known:
                    for i in range(len(group.requests)):
                        at = (place + i, node.start - group.own, node.length)
                        cohort.pool.fill(*at, session.known[node.order].layers)
            path = session.wanted.get(group.number, ())
            if self.prefixes is not None and path and all(node.order in stored for node in path):
                tokens = list(group.requests[0].prompt[: path[-1].stop])
                self.prefixes.keep(tokens, [stored[node.order] for node in path])

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
            keepers.append(cohort.appender(span))
            blocks.append(self._own_block(cohort, span))
            at += count
        ids = torch.cat([c.rows.last for c in cohorts])
        positions = torch.cat([c.base + c.own for c in cohorts])
        shared = self._shared.of(cohorts, self.rules.device, self.capacity - self.used())
        more = [part.block(positions) for part in shared]
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
            session = seat.session
            session.results[seat.group.number][seat.sample] = result
            session.left -= 1
            told = seat.group.requests[seat.sample].on_end
            if told is not None:
                told(result)
            if session.on_done and None not in session.results[seat.group.number]:
                try:
                    session.on_done(1)
                except Exception as problem:  # not the other sessions' fault
                    session.error = problem
        self._leave(cohort, done)

    def _leave(self, cohort: Cohort, done: Sequence[int]) -> None:
        if not done:
            return
        for i in done:
            cohort.seats[i].session.release(cohort.seats[i].group)
        cohort.leave(done)
        if not cohort.seats:  # give the memory back
            del self.cohorts[cohort.pool.capacity]
        if self.cohorts:
            self._shared.moved()
        else:
            self._shared.clear()

    def drop(self, session: Session, number: int) -> None:
        """Take the rows of one group out, finished or not. Called between steps."""
        for group in [g for g in session.pending if g.number == number]:
            session.pending.remove(group)
            session.release(group, len(group.requests))
            session.left -= len(group.requests)
        for cohort in list(self.cohorts.values()):
            rows = [i for i, s in enumerate(cohort.seats) if s.session is session and s.group.number == number]
            session.left -= len(rows)
            self._leave(cohort, rows)

    def _drop(self, session: Session) -> None:
        """Take a session's rows out, finished or not."""
        self.sessions.remove(session)
        for cohort in list(self.cohorts.values()):
            self._leave(cohort, [i for i, seat in enumerate(cohort.seats) if seat.session is session])
        session.pending = []
        session.forget()

    def _fail(self, problem: BaseException) -> None:
        """After an error nothing can be trusted: forget every row, and say so to every session."""
        with self._gate:
            sessions, self.sessions, self._incoming = [*self.sessions, *self._incoming], [], []
        self.cohorts = {}
        self._shared.clear()
        for session in sessions:
            session.forget()
            session.error = session.error or problem
            session.turn.set()
