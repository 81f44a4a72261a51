"""Best-of-n: how good the best of n answers is, and how far it lies from the model that gave them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def best_of_n_kl(n: int) -> float:
    """KL(best of n || model) = log n - (n - 1) / n in nats, exact where no two answers have the same score and none has
    a probability that matters (Stiennon et al. 2020, app. G.3); an upper bound else (Beirami et al. 2024)."""
    return math.log(n) - (n - 1) / n


def exact_best_of_n(logp_A: Tensor, scores_A: Tensor, n: int) -> Tensor:
    """Log-probs [A] of the best of n independent draws from a distribution over A answers, equal scores drawn evenly
    from those sampled.

    With F the probability of a score at most s and F- of one below it, P(best has score s) = F^n - F-^n, shared among
    the answers of that score by their probability.
    """
    order = scores_A.argsort()
    p, s = logp_A.double().exp()[order], scores_A[order]
    _, level = torch.unique_consecutive(s, return_inverse=True)
    mass = torch.zeros(int(level.max()) + 1, dtype=torch.double).index_add_(0, level, p)
    upto = mass.cumsum(0).clamp(max=1.0)
    below = torch.cat([upto.new_zeros(1), upto[:-1]])
    best = (upto**n - below**n).clamp(min=0)
    out = torch.empty_like(p)
    out[order] = (p.log() + (best / mass).log()[level]).to(out.dtype)
    return out


def exact_kl(logq_A: Tensor, logp_A: Tensor) -> float:
    """KL(q || p) in nats of two distributions over the same answers; an answer that q never gives counts 0."""
    q = logq_A.double().exp()
    gap = torch.where(q > 0, logq_A.double() - logp_A.double(), torch.zeros_like(q))
    return float((q * gap).sum())


def expected_best(scores_PK: Tensor, values_PK: Tensor, n: int) -> Tensor:
    """Mean value [P] of the answer with the best score among n of each prompt's K, over all choices of n: without bias
    and with less noise than trying one choice (Nakano et al. 2021, app. I).

    Sorted by score, answer i (from 1) is the best of C(i - 1, n - 1) of the C(K, n) choices. ValueError for n > K.
    """
    k = scores_PK.shape[1]
    if not 1 <= n <= k:
        raise ValueError(f"n={n} of {k} answers; expected 1 to {k}")
    weights = torch.tensor([math.comb(i, n - 1) / math.comb(k, n) for i in range(k)], dtype=torch.double)
    order = scores_PK.argsort(dim=1, stable=True)
    return (values_PK.double().gather(1, order) * weights).sum(1)


def ladder(n: int) -> list[int]:
    """1, 2, 4, ... up to n, and n itself."""
    steps = [1 << i for i in range(n.bit_length()) if 1 << i <= n]
    return steps if steps[-1] == n else [*steps, n]
