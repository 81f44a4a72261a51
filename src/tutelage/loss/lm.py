"""Language-model losses and masked statistics. Sums and counts are returned apart, so that gradient accumulation
can be normalised by the global token count instead of averaging averages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def at_least_fp32(x: Tensor) -> Tensor:
    """x in fp32, or untouched if already fp32/fp64 (fp64 is kept for gradient checks)."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _next_labels(labels_BT: Tensor, fill: int) -> Tensor:
    """labels moved one step left, so that logits need no slice: the slice's backward would copy all of [B, T, V]."""
    shifted = torch.full_like(labels_BT, fill)
    shifted[:, :-1] = labels_BT[:, 1:]
    return shifted


def _check(name: str, x: Tensor, labels_BT: Tensor) -> None:
    if x.dim() != 3 or x.shape[:2] != labels_BT.shape:
        raise ValueError(f"{name} of shape {tuple(x.shape)} do not fit tokens of shape {tuple(labels_BT.shape)}")


def token_logprobs(logits_BTV: Tensor, tokens_BT: Tensor, temperature: float = 1.0) -> Tensor:
    """log P(token t+1 | tokens ..t) in nats, shape [B, T-1], of tokens[:, 1:] under softmax(logits / temperature).

    The temperature must be the sampler's, for policy, reference and update alike. At least fp32 inside and out.
    ValueError on shapes that do not match or a temperature that is not above 0.
    """
    _check("logits", logits_BTV, tokens_BT)
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    logits = at_least_fp32(logits_BTV)
    if temperature != 1.0:
        logits = logits / temperature
    # The fused kernel, forward and backward, is 2 to 3 times faster on a CPU than gather minus logsumexp, and its
    # peak memory is no higher: logsumexp allocates a temporary of the same size.
    targets = _next_labels(tokens_BT, -100).reshape(-1)
    nll = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets, reduction="none")
    return -nll.view(tokens_BT.shape)[:, :-1]


def cross_entropy_sum(logits_BTV: Tensor, labels_BT: Tensor, ignore_index: int = -100) -> tuple[Tensor, Tensor]:
    """(summed cross entropy in nats, number of counted labels), Hugging Face convention: logits at t predict
    labels at t+1, `ignore_index` does not count. With no counted label: (0, 0), gradient 0."""
    _check("logits", logits_BTV, labels_BT)
    targets = _next_labels(labels_BT, ignore_index).reshape(-1)
    logits = at_least_fp32(logits_BTV.reshape(-1, logits_BTV.shape[-1]))
    loss = F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="sum")
    return loss, (targets != ignore_index).sum()


def label_cross_entropy_sum(logits: Tensor, labels: Tensor, ignore_index: int = -100) -> tuple[Tensor, Tensor]:
    """(summed cross entropy in nats, number of counted labels) of logits [..., V] that stand at their labels [...]:
    masked LMs and decoders of their own input. With no counted label: (0, 0), gradient 0."""
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits of shape {tuple(logits.shape)} do not fit labels of shape {tuple(labels.shape)}")
    flat = at_least_fp32(logits.reshape(-1, logits.shape[-1]))
    loss = F.cross_entropy(flat, labels.reshape(-1), ignore_index=ignore_index, reduction="sum")
    return loss, (labels != ignore_index).sum()


Head = Callable[[Tensor], Tensor]
"""States [N, D] to logits [N, V], each row by itself."""
LOGITS_ALIVE = 1 << 24
"""Logits of a chunk, where the caller names no number of positions: 64 MiB in fp32."""
LEAST = 32
"""Positions of a chunk at least."""


def _positions(chunk: int | None, vocabulary: int) -> int:
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, not {chunk}")
    return chunk or max(LEAST, LOGITS_ALIVE // vocabulary)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross entropy of head(hidden), the logits of `chunk` positions at a time.

    The gradient of a sum is known up to one scalar factor, so it is made in the forward pass while a chunk's logits
    exist: nothing is recomputed (3 matrix products per chunk, where checkpointing takes 4).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, labels_N: Tensor, head: Head, chunk: int, grad: bool, *parameters: Tensor
    ) -> Tensor:
        moved = [grad and ctx.needs_input_grad[0], *(grad and p.requires_grad for p in parameters)]
        sums = [None, *(torch.zeros_like(p, dtype=_wide(p)) if m else None for p, m in zip(parameters, moved[1:]))]
        grad_h = torch.zeros_like(hidden_ND) if moved[0] else None
        total = torch.zeros((), dtype=_wide(hidden_ND), device=hidden_ND.device)
        for start in range(0, labels_N.numel(), chunk):
            part = slice(start, start + chunk)
            hidden, labels = hidden_ND[part].detach().requires_grad_(moved[0]), labels_N[part, None]
            with torch.set_grad_enabled(any(moved)):
                logits = head(hidden)
            logp = at_least_fp32(logits.detach()).log_softmax(-1)
            total -= logp.gather(-1, labels).sum()
            if not any(moved):
                continue
            # d loss / d logits = softmax - one-hot, in the logits' own dtype as autograd would have it
            delta = logp.exp_().scatter_add_(-1, labels, logp.new_full(labels.shape, -1.0)).to(logits.dtype)
            wanted = [x for x, m in zip((hidden, *parameters), moved) if m]
            found = iter(torch.autograd.grad(logits, wanted, delta))
            if grad_h is not None:
                grad_h[part] = next(found)
            for number, own in enumerate(sums):
                if own is not None:
                    sums[number] = own.add_(next(found))
        kept = [None if g is None else g.to(p.dtype) for g, p in zip(sums[1:], parameters)]
        ctx.save_for_backward(grad_h, *kept)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        # a copy of a whole vocabulary's gradient would cost as much as the logits that were saved
        whole = float(grad_output) == 1.0
        grad_h, *rest = (g if g is None or whole else g * grad_output.to(g.dtype) for g in ctx.saved_tensors)
        return (grad_h, None, None, None, None, *rest)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _counted(hidden_BTD: Tensor, labels_BT: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """(states [N, D] that predict a label that counts, these labels [N])."""
    _check("hidden states", hidden_BTD, labels_BT)
    targets = _next_labels(labels_BT, ignore_index).reshape(-1)
    keep = (targets != ignore_index).nonzero().squeeze(-1)
    return hidden_BTD.reshape(-1, hidden_BTD.shape[-1]).index_select(0, keep), targets[keep]


def chunked_cross_entropy(
    hidden_BTD: Tensor, head: Head, parameters: Sequence[Tensor], labels_BT: Tensor, vocabulary: int,
    chunk: int | None = None, ignore_index: int = -100,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """cross_entropy_sum(head(hidden), labels) with the logits of at most `chunk` positions alive; same value, gradient.

    `parameters`: the trainable tensors that `head` reads. Without `chunk`, as many positions as make 64 MiB of logits.
    Ignored positions are dropped before the head, so a mostly masked SFT batch costs only its answers. Not twice
    differentiable. ValueError on shapes that do not match or chunk < 1.
    """
    size = _positions(chunk, vocabulary)
    hidden, targets = _counted(hidden_BTD, labels_BT, ignore_index)
    grad = torch.is_grad_enabled()  # read here: inside an autograd function it is always off
    total = _ChunkedCrossEntropy.apply(hidden, targets, head, size, grad, *parameters)
    return total, torch.tensor(targets.numel(), device=targets.device)


def chunked_linear_cross_entropy(
    hidden_BTD: Tensor, weight_VD: Tensor, labels_BT: Tensor, chunk: int = 256, ignore_index: int = -100
) -> tuple[Tensor, Tensor]:
    """`chunked_cross_entropy` of the plain head hidden @ weight.T."""

    def head(hidden: Tensor) -> Tensor:
        return F.linear(hidden, weight_VD)

    return chunked_cross_entropy(hidden_BTD, head, [weight_VD], labels_BT, weight_VD.shape[0], chunk, ignore_index)


@torch.no_grad()
def chunked_nats(
    hidden_BTD: Tensor, head: Head, labels_BT: Tensor, vocabulary: int, chunk: int | None = None,
    ignore_index: int = -100,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(nats [N] of each label that counts, these labels [N]) in reading order, without gradients."""
    size = _positions(chunk, vocabulary)
    hidden, targets = _counted(hidden_BTD, labels_BT, ignore_index)
    parts = [
        F.cross_entropy(at_least_fp32(head(hidden[i : i + size])), targets[i : i + size], reduction="none")
        for i in range(0, len(targets), size)
    ]
    return torch.cat(parts) if parts else hidden.new_zeros(0), targets


def _expanded(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """x in at least fp32 with padding set to 0 (so NaN or inf there reach neither value nor gradient), bool mask."""
    x = at_least_fp32(x)
    real = mask.bool().expand(x.shape)
    return torch.where(real, x, torch.zeros_like(x)), real


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of x where mask is true. Here and below the mask broadcasts to x; x may be bool or integer."""
    return _expanded(x, mask)[0].sum()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x where mask is true; 0 for an empty mask."""
    x, real = _expanded(x, mask)
    return x.sum() / real.sum().clamp(min=1)


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Population variance (divisor n, not n-1) of x where mask is true; 0 for fewer than two elements."""
    x, real = _expanded(x, mask)
    return masked_mean((x - masked_mean(x, real)) ** 2, real)


def masked_whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """x scaled to variance 1 over the mask, with mean 0 unless `shift_mean` is false (its mean is kept: for rewards,
    whose sign means something); 0 on padding."""
    x, real = _expanded(x, mask)
    mean = masked_mean(x, real)
    white = (x - mean) * torch.rsqrt(masked_var(x, real) + 1e-8)
    if not shift_mean:
        white = white + mean
    return torch.where(real, white, torch.zeros_like(white))


def entropy_from_logits(logits_BTV: Tensor) -> Tensor:
    """Entropy in nats of softmax(logits) over the last axis; logits of -inf count as probability 0.

    Differentiable for an entropy bonus: probabilities that underflow give gradient 0, not NaN.
    """
    logp = torch.log_softmax(at_least_fp32(logits_BTV), dim=-1)
    p = logp.exp()
    return -(p * logp.masked_fill(p == 0, 0.0)).sum(-1)
