"""Scoring through a trie: what contexts and continuations begin with alike is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.engine.plan import Walk
from tutelage.engine.requests import Counts, Score
from tutelage.engine.trie import Trie
from tutelage.model.attention import using
from tutelage.model.forward import call

LOGITS = 1 << 25
"""Most logits (positions times vocabulary) of one forward."""


def score_tokens(
    model: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], max_tokens: int = 4096,
    counts: Counts | None = None, top: int = 0,
) -> list[Score]:  # fmt: skip
    """One Score for each (context ids, continuation ids), neither empty. `max_tokens`: tokens of one forward; `top`: so
    many alternatives of each token.

    The model must honour plans (see probe.py). Equal contexts, beginnings of contexts and beginnings of continuations
    are computed once; only positions that predict a continuation's token get logits.
    """
    whole = [np.array([*left, *right], dtype=np.int64) for left, right in pairs]
    trie = Trie([tokens[:-1] for tokens in whole])  # nothing is predicted from the last token
    if counts is not None:
        counts.add(sum(len(tokens) - 1 for tokens in whole), sum(node.length for node in trie.nodes))
    asked = _Asked(trie, whole, [len(left) for left, _ in pairs], top)
    device = next(model.parameters()).device
    vocab = model.get_output_embeddings().weight.shape[0]
    walk = Walk(trie.nodes, max_tokens, device, cost=lambda a, b: asked.between(a, b) * vocab * max_tokens / LOGITS)
    for chunk in walk.chunks():
        wanted = asked.within(chunk.first, len(chunk.ids))
        if wanted is None:
            keep: Any = torch.tensor([0], device=device)
        else:
            positions, inverse = np.unique(asked.place[wanted] - chunk.first, return_inverse=True)
            keep = torch.from_numpy(positions).to(device)
        with using(model, chunk.plan):
            logits = call(
                model, input_ids=chunk.ids[None], position_ids=chunk.positions[None], use_cache=False,
                logits_to_keep=keep,
            ).logits[0]  # fmt: skip
        if wanted is None:
            continue
        if logits.shape[0] != len(keep):  # a family that gives all positions' logits
            logits = logits[keep]
        asked.answer(wanted, logits, torch.from_numpy(inverse).to(device))
    return asked.scores([right for _, right in pairs])


def alternatives(logits_MV: Tensor, count: int) -> list[dict[int, float]]:
    """The likeliest tokens of each row and their log-probs, best first."""
    best = logits_MV.float().log_softmax(-1).topk(min(count, logits_MV.shape[-1]))
    return [dict(zip(ids, values)) for ids, values in zip(best.indices.tolist(), best.values.tolist())]


class _Asked:
    """Which tokens are to be predicted where: flat arrays over all requests, ordered by place in the trie."""

    def __init__(self, trie: Trie, whole: Sequence[np.ndarray], contexts: Sequence[int], top: int = 0) -> None:
        self.top = top
        sizes = np.array([node.length for node in trie.nodes])
        self.begins = np.concatenate([[0], sizes.cumsum()])
        self.counts = [len(tokens) - context for tokens, context in zip(whole, contexts)]
        place = np.empty(sum(self.counts), dtype=np.int64)
        at = 0
        for leaf, tokens, context in zip(trie.leaf, whole, contexts):
            stop, node = len(tokens) - 1, leaf
            while stop > context - 1:  # token t is predicted at depth t - 1
                start = max(node.start, context - 1)
                offset = int(self.begins[node.order]) - node.start
                place[at + start - context + 1 : at + stop - context + 1] = np.arange(start, stop) + offset
                stop = start
                if stop > context - 1:
                    assert node.parent is not None
                    node = node.parent
            at += len(tokens) - context
        self.order = np.argsort(place, kind="stable")
        self.place = place[self.order]
        self.target = np.concatenate([t[c:] for t, c in zip(whole, contexts)])[self.order]
        self.logprob = np.empty(len(place), dtype=np.float64)
        self.best = np.empty(len(place), dtype=bool)
        self.others: list[dict[int, float]] = [{}] * (len(place) if top else 0)

    def between(self, first: int, last: int) -> int:
        """Positions that need logits in the nodes first..last."""
        a, b = np.searchsorted(self.place, [self.begins[first], self.begins[last]])
        return len(np.unique(self.place[a:b]))

    def within(self, first: int, count: int) -> slice | None:
        """The predictions made at the tokens first..first+count, None if there is none."""
        a, b = np.searchsorted(self.place, [first, first + count])
        return slice(int(a), int(b)) if b > a else None

    def answer(self, wanted: slice, logits_MV: Tensor, rows: Tensor) -> None:
        """Fill in the log-probs of `wanted`; row rows[i] of the logits predicts the i-th of them."""
        logits = logits_MV.float()
        targets = torch.from_numpy(self.target[wanted]).to(logits.device)
        logprobs = logits[rows, targets] - logits.logsumexp(-1)[rows]
        self.logprob[wanted] = logprobs.double().cpu().numpy()
        self.best[wanted] = (logits.argmax(-1)[rows] == targets).cpu().numpy()
        if self.top:
            found = alternatives(logits, self.top)
            self.others[wanted] = [found[row] for row in rows.tolist()]

    def scores(self, continuations: Sequence[Sequence[int]]) -> list[Score]:
        """The answers in the requests' order."""
        back = np.empty(len(self.order), dtype=np.int64)
        back[self.order] = np.arange(len(self.order))
        logprob, best = self.logprob[back], self.best[back]
        out, at = [], 0
        for tokens, count in zip(continuations, self.counts):
            part = logprob[at : at + count]
            others = tuple(self.others[i] for i in back[at : at + count]) if self.top else ()
            sure = bool(best[at : at + count].all())
            out.append(Score(float(part.sum()), tuple(part.tolist()), sure, tuple(tokens), None, others))
            at += count
        return out
