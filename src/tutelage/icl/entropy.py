"""What orders (GlobalE, LocalE) and prompts (mutual information) are chosen by, over many of them at once.

Shapes: S demonstration sets, orders or prompts; Q inputs; L labels. Everything is in nats.
"""

from __future__ import annotations

import numpy as np

from tutelage.core.errors import DataError
from tutelage.icl import scoring
from tutelage.icl.scoring import entropy, probabilities

FLOOR = 1e-5
"""Count of a label that was never predicted, as in the code of Lu et al. 2022 (arXiv 2104.08786)."""


def label_probabilities(logprobs: np.ndarray) -> np.ndarray:
    """P(label), renormalised over the labels: float64 [S, Q, L] from the labels' log-probs [S, Q, L].

    DataError where the shape is another, something is empty or not a number, or an input has no possible label.
    """
    logprobs = np.asarray(logprobs, dtype=np.float64)
    if logprobs.ndim != 3 or 0 in logprobs.shape:
        raise DataError(f"label log-probs must have the shape [sets, inputs, labels], none of them 0: {logprobs.shape}")
    wrong = ~np.isfinite(logprobs.max(axis=2))
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise DataError(f"set {where[0]}, input {where[1]}: the labels' log-probs are {logprobs[where].tolist()}")
    return probabilities(logprobs)


def global_entropy(logprobs: np.ndarray) -> np.ndarray:
    """GlobalE [S] of log-probs [S, Q, L]: the entropy of how often each label is predicted over the inputs.

    High where predictions are spread over the labels. Labels that are never predicted count ``FLOOR`` times.
    """
    chosen = label_probabilities(logprobs).argmax(axis=2)
    counts = (chosen[:, :, None] == np.arange(logprobs.shape[2])).sum(axis=1)
    floored = np.where(counts == 0, FLOOR, counts)
    return entropy(floored / floored.sum(axis=1, keepdims=True))


def local_entropy(logprobs: np.ndarray) -> np.ndarray:
    """LocalE [S] of log-probs [S, Q, L]: the mean over inputs of the entropy of P(label). High: not overconfident."""
    return entropy(label_probabilities(logprobs)).mean(axis=1)


def mutual_information(logprobs: np.ndarray) -> np.ndarray:
    """I(input; label) [S] of log-probs [S, Q, L] (Sorensen et al. 2022). High: sure, and different between inputs."""
    return np.array([scoring.mutual_information(probs_QL) for probs_QL in label_probabilities(logprobs)])
