"""A group's answers behind one copy of their prompt: K answers cost one prompt in every forward and backward, not K.

As in train/packs.py every answer sees the prompt and itself; log-probs and gradients are those of the rows apart, up to
the order of sums. Where that is cheaper, old, reference and new log-probs are all computed so, on the same slices, and
the first ratio stays exactly 1.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.core.runtime import autocast
from tutelage.loss.lm import at_least_fp32, entropy_from_logits
from tutelage.model.forward import predicting_at
from tutelage.train.compiled import compiled, layers_of
from tutelage.train.packs import ATTENTION_SHARE, TOLERANCE

log = logging.getLogger("tutelage")


@dataclass(frozen=True)
class Packed:
    """Some rows of a rollout, a group (or what the slice holds of it) a row: ids and positions [G, P]; seen
    [G, 1, P, P] (who attends to whom); for each of the N response tokens the place that predicts it (rows, columns),
    the token, and its place in the flat [b * (T-1)] table."""

    ids: Tensor
    positions: Tensor
    seen: Tensor
    rows: Tensor
    columns: Tensor
    targets: Tensor
    places: Tensor
    shape: tuple[int, int]


class Logits:
    """A causal model as (tokens, attention) -> logits [B, T, V], and on packed rows. `enter` runs before a forward."""

    def __init__(self, model: Any, enter: Callable[[], object] | None = None) -> None:
        self.model, self.enter = model, enter
        config = model.config.get_text_config()
        self.width = int(getattr(config, "hidden_size", 0) or getattr(config, "n_embd", 0) or 1)
        self.layers: list[Any] = []
        """Those that run compiled (see `compile_all`)."""

    def __call__(self, tokens: Tensor, attention: Tensor) -> Tensor:
        return self._logits(input_ids=tokens, attention_mask=attention)

    def packed(self, pack: Packed) -> Tensor:
        """Logits [N, V] at the places that predict response tokens; the head computes no others."""
        dtype = next(self.model.parameters()).dtype
        bias = torch.zeros(pack.seen.shape, dtype=dtype).masked_fill_(~pack.seen, torch.finfo(dtype).min)
        with predicting_at(self.model, torch.stack([pack.rows, pack.columns])):
            return self._logits(input_ids=pack.ids, attention_mask=bias, position_ids=pack.positions)[0]

    def _logits(self, **inputs: Tensor) -> Tensor:
        if self.enter:
            self.enter()
        with compiled(self.layers):
            logits = self.model(**inputs, use_cache=False).logits
        return logits if torch.is_grad_enabled() else logits.detach()


def compile_all(forwards: Sequence[Logits], share_prompts: bool, precision: str) -> bool:
    """Compile the layers of models of one kind, of which the first is trained. False where there is no compiler or it
    cannot take the model: the layers then run as they are, and a line says so.

    The program is made on inputs of a fixed size before the first update, the same in a run and in its resumption: the
    compiler looks at sizes.
    """
    first = forwards[0]
    for forward in forwards:
        forward.layers = layers_of(forward.model)
        forward.model.requires_grad_(True)  # of the reference too: see `compiled`
    vocab, groups, start, said = first.model.get_input_embeddings().num_embeddings, 8, 9, 16
    tokens = (torch.arange(groups * (start + said)) % vocab).view(groups, -1).repeat_interleave(8, 0)
    mask = (torch.arange(tokens.shape[1] - 1) >= start - 1).float().expand(len(tokens), -1)
    pack = pack_rows(tokens, mask, [row // 8 for row in range(len(tokens))]) if share_prompts else None
    try:
        with autocast(precision), torch.enable_grad():
            made = first.packed(pack) if pack is not None else first(tokens, torch.ones_like(tokens))
            made.float().logsumexp(-1).sum().backward()
    except Exception as problem:  # whatever a compiler raises, the models themselves still run
        log.warning("training without torch.compile: %s: %s", type(problem).__name__, (str(problem) or " ")[:200])
        for forward in forwards:
            forward.layers = []
    first.model.zero_grad(set_to_none=True)
    return bool(first.layers)


def pack_rows(tokens: Tensor, mask: Tensor, groups: list[int], pad_id: int = 0) -> Packed | None:
    """The rows of `tokens` [b, T], right-padded, whose response tokens `mask` [b, T-1] marks and which follow one
    another; `groups` numbers each row's group. None where a row has no response or its group another prompt."""
    b, T = tokens.shape
    starts = (mask.argmax(1) + 1).tolist()
    lengths = mask.sum(1).int().tolist()
    if min(lengths) < 1:
        return None
    given = tokens.numpy()
    lines: list[list[int]] = []
    for row, group in enumerate(groups):
        if row and group == groups[row - 1]:
            first, start = lines[-1][0], starts[row]
            if start != starts[first] or not np.array_equal(given[row, :start], given[first, :start]):
                return None
            lines[-1].append(row)
        else:
            lines.append([row])
    P = max(starts[line[0]] + sum(lengths[r] for r in line) for line in lines)
    ids, positions = np.full((len(lines), P), pad_id), np.zeros((len(lines), P), dtype=np.int64)
    segment = np.full((len(lines), P), -1)
    at: list[tuple[np.ndarray, ...]] = []
    for g, line in enumerate(lines):
        start = starts[line[0]]
        ids[g, :start], positions[g, :start], segment[g, :start] = given[line[0], :start], np.arange(start), 0
        end = start
        for number, row in enumerate(line, 1):
            n = lengths[row]
            said, place = slice(end, end + n), np.arange(start, start + n)
            ids[g, said], segment[g, said], positions[g, said] = given[row, start : start + n], number, place
            columns = np.arange(end - 1, end + n - 1)
            columns[0] = start - 1  # the prompt's last token predicts every answer's first
            at.append((np.full(n, g), columns, row * (T - 1) + place - 1))
            end += n
    lines_at, columns_at, places = (torch.from_numpy(np.concatenate(x)) for x in zip(*at))
    part = torch.from_numpy(segment)
    before = torch.ones(P, P, dtype=torch.bool).tril()
    seen = before & ((part[:, :, None] == part[:, None, :]) | (part[:, None, :] == 0))
    seen &= part[:, None, :] >= 0
    seen |= torch.eye(P, dtype=torch.bool)  # padding sees itself, so that no row of the softmax is empty
    targets = tokens[:, 1:].reshape(-1)[places]
    flat, where = torch.from_numpy(ids), torch.from_numpy(positions)
    return Packed(flat, where, seen[:, None], lines_at, columns_at, targets, places, (b, T - 1))


def cheaper(pack: Packed, shape: tuple[int, int], width: int) -> bool:
    """Whether the pack costs less than rows [b, T] apart, attention counted as in train/packs.py."""
    share = ATTENTION_SHARE / width

    def cost(rows: int, length: int) -> float:
        return rows * length * (1 + share * length)

    return cost(*pack.ids.shape) < cost(*shape)


def packed_logprobs(
    forward: Logits, pack: Packed, temperature: float, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-probs [b, T-1] of the response tokens, 0 elsewhere, and (detached) their distributions' entropies."""
    logits = at_least_fp32(forward.packed(pack))
    if temperature != 1.0:
        logits = logits / temperature
    flat = -F.cross_entropy(logits, pack.targets, reduction="none")
    size = pack.shape[0] * pack.shape[1]

    def table(values: Tensor) -> Tensor:
        return values.new_zeros(size).index_put((pack.places,), values).view(pack.shape)

    return table(flat), table(entropy_from_logits(logits.detach())) if entropy else None


@torch.no_grad()
def takes_groups(forward: Logits) -> bool:
    """Whether the model gives packed answers the log-probs it gives them apart: families differ in what they make of a
    mask [G, 1, P, P], so it is tried, in fp32, on two groups."""
    model = forward.model
    config = model.config.get_text_config()
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()) or getattr(config, "sliding_window", None):
        return False
    vocab = min(24, model.get_input_embeddings().num_embeddings)
    draw = torch.Generator().manual_seed(0)
    tokens, mask = torch.zeros(6, 14, dtype=torch.long), torch.zeros(6, 13)
    for row, (start, said) in enumerate([(3, 2), (3, 4), (3, 5), (9, 5), (9, 1), (9, 3)]):
        prompt = torch.randint(vocab, (start,), generator=draw)
        tokens[row, :start] = tokens[row - row % 3, :start] if row % 3 else prompt
        tokens[row, start : start + said] = torch.randint(vocab, (said,), generator=draw)
        mask[row, start - 1 : start + said - 1] = 1
    training = model.training
    model.eval()
    try:
        pack = pack_rows(tokens, mask, [0, 0, 0, 1, 1, 1])
        assert pack is not None
        together, _ = packed_logprobs(forward, pack, 1.0)
        attention = (torch.arange(14) < (mask.argmax(1) + 1 + mask.sum(1))[:, None]).long()
        logp = forward(tokens, attention)[:, :-1].float().log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return False
    finally:
        model.train(training)
    return bool(((together - logp * mask).abs() <= TOLERANCE * (1 + logp.abs())).all())
