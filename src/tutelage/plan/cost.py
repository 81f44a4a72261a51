"""FLOPs, compute-optimal tokens, time and money: closed forms.

Sources: Kaplan et al. 2020, sec. 2.1 (6 N D); Chowdhery et al. 2022 (PaLM), app. B (attention's term, MFU); Hoffmann et
al. 2022 (compute-optimal training), sec. 3 and app. D.3; Besiroglu et al. 2024 for the unrounded constants of its fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

TOKENS_PER_PARAMETER = 20.0
"""Hoffmann et al. 2022, approaches 1 and 2: parameters and tokens grow alike; Chinchilla has 70B and 1.4T."""
LAW = {"E": math.exp(0.5267228), "A": math.exp(6.0073491), "B": math.exp(6.0179186), "a": 0.33917084, "b": 0.2849083}
"""Approach 3's fit L(N, D) = E + A / N^a + B / D^b; the paper prints 1.69, 406.4, 410.7, 0.34, 0.28."""


def flops_6nd(parameters: float, tokens: float) -> float:
    """Training FLOPs by the rule of thumb: 2 a parameter and token forward, 4 backward."""
    return 6.0 * parameters * tokens


def forward_flops(matmul_parameters: float, layers: int, attention_width: int, length: float) -> float:
    """FLOPs of one token's forward pass in a sequence of `length`: 2 N + 4 L (heads * head_dim) T.

    PaLM's convention: attention counts over the whole sequence, as if it were not causal.
    """
    return 2.0 * matmul_parameters + 4.0 * layers * attention_width * length


def training_flops(matmul_parameters: float, layers: int, attention_width: int, length: float) -> float:
    """FLOPs of one token's forward and backward pass: 6 N + 12 L (heads * head_dim) T (PaLM, app. B)."""
    return 3.0 * forward_flops(matmul_parameters, layers, attention_width, length)


def optimal_tokens(parameters: float) -> float:
    """Compute-optimal tokens by the ratio of 20."""
    return TOKENS_PER_PARAMETER * parameters


def hoffmann_loss(parameters: float, tokens: float) -> float:
    """Nats per token that approach 3's fit expects (on MassiveText, for its tokenizer: a shape, not a promise)."""
    return LAW["E"] + LAW["A"] / parameters ** LAW["a"] + LAW["B"] / tokens ** LAW["b"]


def hoffmann_tokens(parameters: float) -> float:
    """Tokens at which `parameters` is approach 3's optimum for its compute: where N and D lower the loss alike,
    a A / N^a = b B / D^b."""
    ratio = LAW["b"] * LAW["B"] / (LAW["a"] * LAW["A"])
    return (ratio * parameters ** LAW["a"]) ** (1 / LAW["b"])


def hoffmann_optimum(flops: float) -> tuple[float, float]:
    """(parameters, tokens) of the least loss at a budget of `flops` = 6 N D (eq. 4)."""
    a, b = LAW["a"], LAW["b"]
    g = (a * LAW["A"] / (b * LAW["B"])) ** (1 / (a + b))
    return g * (flops / 6) ** (b / (a + b)), (flops / 6) ** (a / (a + b)) / g


@dataclass(frozen=True)
class Bill:
    """What a number of FLOPs takes on given devices: seconds of the clock, device hours, money."""

    seconds: float
    device_hours: float
    cost: float | None

    @property
    def days(self) -> float:
        return self.seconds / 86400


def bill(flops: float, devices: int, peak: float, mfu: float, price: float | None = None) -> Bill:
    """`flops` on `devices` of `peak` FLOP/s each, of which the share `mfu` does the model's work; `price`: of a device
    and hour. ValueError for a share outside (0, 1]."""
    if not 0 < mfu <= 1:
        raise ValueError(f"mfu={mfu}, expected a share above 0 and at most 1")
    seconds = flops / (devices * peak * mfu)
    hours = seconds * devices / 3600
    return Bill(seconds, hours, None if price is None else hours * price)


def mfu_of(tokens_per_second: float, flops_per_token: float, devices: int, peak: float) -> float:
    """Model FLOPs utilisation of a measured speed (PaLM, app. B)."""
    return tokens_per_second * flops_per_token / (devices * peak)
