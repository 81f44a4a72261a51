"""Memory in closed form: what the papers say, for decoders as the papers have them.

The planner itself follows the model's own code on shapes alone (trace.py), which holds for every family; these formulas
divide what it finds among ranks, and a test holds the two against each other.

Sources: Korthikanti et al. 2022 ("Reducing Activation Recomputation in Large Transformer Models"), sec. 4 and 5;
Rajbhandari et al. 2020 (ZeRO), sec. 3 and 5.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes. `parameters`: all of them, shared ones once; `matmul`: those that multiply every token (no
    look-up tables; a head tied to the embeddings counts); `layer`: those of the largest layer."""

    parameters: int
    matmul: int
    layer: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int

    @property
    def attention_width(self) -> int:
        """heads * head_dim: what attention's FLOPs go with."""
        return self.heads * self.head_dim


def korthikanti_layer(
    rows: int, length: int, width: int, heads: int, tensor: int = 1, sequence_parallel: bool = False,
    flash: bool = False,
) -> float:  # fmt: skip
    """Bytes of one layer's saved activations, 16-bit, GELU feed-forward of 4 widths, dropout masks included: eq. 2 is
    s b h (34 + 5 a s / h); `flash` drops the second term, the scores [a, s, s] and their softmax (sec. 5: selective
    recomputation, which an attention kernel that never writes them gives too).

    Tensor parallelism over t (eq. 3): s b h (10 + 24 / t + 5 a s / (h t)); with sequence parallelism (eq. 4) all of it
    is divided by t.
    """
    sbh = float(rows * length * width)
    scores = 0.0 if flash else 5.0 * heads * length / width
    if sequence_parallel:
        return sbh * (34.0 + scores) / tensor
    return sbh * (10.0 + 24.0 / tensor + scores / tensor)


def tensor_share(shape: Shape, length: int, tensor: int, flash: bool) -> float:
    """Share of the saved activations that one of `tensor` ranks keeps, by eq. 3 over eq. 2."""
    sizes = (1, length, shape.width, shape.heads)
    return korthikanti_layer(*sizes, tensor, flash=flash) / korthikanti_layer(*sizes, flash=flash)


def state_bytes(
    parameters: float, weight: int = 4, gradient: int = 4, optimizer: int = 8
) -> tuple[float, float, float]:
    """(weights, gradients, optimiser state) in bytes. fp32 AdamW: 4 + 4 + 8 = 16 a parameter, the same sum as ZeRO's
    2 + 2 + 12 with 16-bit weights and fp32 masters; Muon keeps 4 instead of 8 for its matrices."""
    return weight * parameters, gradient * parameters, optimizer * parameters


def zero_divisors(ranks: int, stage: int) -> tuple[int, int, int]:
    """By what (weights, gradients, optimiser state) are divided on `ranks` ranks at ZeRO stage 0 (DDP) to 3 (FSDP)."""
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"ZeRO stage {stage}, expected 0 to 3")
    return (ranks if stage == 3 else 1, ranks if stage >= 2 else 1, ranks if stage >= 1 else 1)


def gathered_bytes(shape: Shape, itemsize: int) -> float:
    """What FSDP holds unsharded at its worst: the layer at work and the one fetched ahead, and the largest single group
    beside the layers (embeddings and head), in the compute dtype, and that group's gradient before it is scattered."""
    rest = shape.parameters - shape.layer * shape.layers
    biggest = max(shape.layer, rest)
    return float(itemsize * (shape.layer + 2 * biggest))


def kv_cache_bytes(shape: Shape, rows: int, length: int, itemsize: int, tensor: int = 1) -> float:
    """Keys and values of `rows` rows of `length` tokens: 2 L (kv heads) (head_dim) a token; a rank of `tensor` keeps
    its own heads (at least one)."""
    heads = max(1, shape.kv_heads // tensor)
    return 2.0 * shape.layers * heads * shape.head_dim * itemsize * rows * length
