"""InfoNCE: which of a batch's passages belongs to each query."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.loss.lm import at_least_fp32


def info_nce(
    scores_QP: Tensor, target_Q: Tensor, excluded_QP: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean cross entropy of each query's own passage among all (van den Oord et al. 2018, arXiv 1807.03748, eq. 4).

    ``excluded_QP``: passages that are no negatives of a query, such as another of its positives; its own target is
    never excluded. Metrics (detached): accuracy, the share of queries whose own passage scores highest.
    """
    scores = at_least_fp32(scores_QP)
    if excluded_QP is not None:
        own = F.one_hot(target_Q, scores.shape[1]).bool()
        scores = scores.masked_fill(excluded_QP & ~own, -torch.inf)
    loss = F.cross_entropy(scores, target_Q)
    return loss, {"accuracy": (scores.argmax(1) == target_Q).float().mean().detach()}
