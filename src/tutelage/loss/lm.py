"""Language-model losses and masked statistics. Sums and counts are returned apart, so that gradient accumulation
can be normalised by the global token count instead of averaging averages."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def at_least_fp32(x: Tensor) -> Tensor:
    """x in fp32, or untouched if already fp32/fp64 (fp64 is kept for gradient checks)."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def token_logprobs(logits_BTV: Tensor, tokens_BT: Tensor, temperature: float = 1.0) -> Tensor:
    """log P(token t+1 | tokens ..t) in nats, shape [B, T-1], of tokens[:, 1:] under softmax(logits / temperature).

    Gathers and subtracts the logsumexp; the [B, T, V] log-softmax never exists. The temperature must be the
    sampler's, for policy, reference and update alike. ValueError on shapes that do not match or temperature <= 0.
    """
    if logits_BTV.shape[:2] != tokens_BT.shape:
        raise ValueError(f"logits {tuple(logits_BTV.shape)} do not fit tokens {tuple(tokens_BT.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    logits = at_least_fp32(logits_BTV[:, :-1])
    if temperature != 1.0:
        logits = logits / temperature
    picked = logits.gather(-1, tokens_BT[:, 1:, None]).squeeze(-1)
    return picked - logits.logsumexp(-1)


def cross_entropy_sum(logits_BTV: Tensor, labels_BT: Tensor, ignore_index: int = -100) -> tuple[Tensor, Tensor]:
    """(summed cross entropy in nats, number of counted labels), Hugging Face convention: logits at t predict
    labels at t+1, `ignore_index` does not count. With no counted label: (0, 0), gradient 0."""
    if logits_BTV.shape[:2] != labels_BT.shape:
        raise ValueError(f"logits {tuple(logits_BTV.shape)} do not fit labels {tuple(labels_BT.shape)}")
    labels = labels_BT[:, 1:].reshape(-1)
    logits = at_least_fp32(logits_BTV[:, :-1].reshape(-1, logits_BTV.shape[-1]))
    loss = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
    return loss, (labels != ignore_index).sum()


def _linear_ce(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> Tensor:
    return F.cross_entropy(at_least_fp32(F.linear(hidden_ND, weight_VD)), labels_N, reduction="sum")


def chunked_linear_cross_entropy(
    hidden_BTD: Tensor, weight_VD: Tensor, labels_BT: Tensor, chunk: int = 1024, ignore_index: int = -100
) -> tuple[Tensor, Tensor]:
    """cross_entropy_sum(hidden @ weight.T, labels) with at most [chunk, V] logits alive; same value and gradient.

    Each chunk's logits are recomputed in the backward pass. Ignored positions are dropped before the matrix
    product, so a mostly masked SFT batch costs only its answers.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, not {chunk}")
    if hidden_BTD.shape[:2] != labels_BT.shape:
        raise ValueError(f"hidden {tuple(hidden_BTD.shape)} does not fit labels {tuple(labels_BT.shape)}")
    labels = labels_BT[:, 1:].reshape(-1)
    keep = labels != ignore_index
    hidden = hidden_BTD[:, :-1].reshape(-1, hidden_BTD.shape[-1])[keep]
    labels = labels[keep]
    total = _linear_ce(hidden[:0], weight_VD, labels[:0])  # a zero that still reaches both gradients
    for start in range(0, labels.numel(), chunk):
        part = slice(start, start + chunk)
        total = total + checkpoint(_linear_ce, hidden[part], weight_VD, labels[part], use_reentrant=False)
    return total, keep.sum()


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of x where mask is true; `where`, not `*`, so that NaN or inf in padding cannot leak in."""
    return torch.where(mask.bool(), x, torch.zeros_like(x)).sum()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x where mask is true; 0 for an empty mask."""
    return masked_sum(x, mask) / mask.bool().sum().clamp(min=1)


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Population variance (divisor n, not n-1) of x where mask is true; 0 for fewer than two elements."""
    return masked_mean((x - masked_mean(x, mask)) ** 2, mask)


def masked_whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """x scaled to variance 1 (and mean 0 if `shift_mean`, else its mean is kept) over the mask; 0 on padding."""
    mean = masked_mean(x, mask)
    white = (x - mean) * torch.rsqrt(masked_var(x, mask) + 1e-8)
    if not shift_mean:
        white = white + mean
    return torch.where(mask.bool(), white, torch.zeros_like(white))


def entropy_from_logits(logits_BTV: Tensor) -> Tensor:
    """Entropy in nats of softmax(logits) over the last axis, never negative; logits of -inf count as probability 0."""
    logp = torch.log_softmax(at_least_fp32(logits_BTV), dim=-1)
    return torch.special.entr(logp.exp()).sum(-1)
