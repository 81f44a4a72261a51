"""The requests of benchmarks/engine.py, the same for every side. Plain Python."""

from __future__ import annotations

import random

VOCAB = 2048


def ids(rng: random.Random, count: int) -> list[int]:
    """Random token ids above the special ones."""
    return [rng.randrange(8, VOCAB) for _ in range(count)]


def scoring(what: str, inputs: int) -> list[tuple[list[int], list[int]]]:
    """(context, label) pairs: demonstrations of 800 tokens, `inputs` inputs of 20, four labels of 3."""
    rng = random.Random(0)
    shared = ids(rng, 800)
    labels = [ids(rng, 3) for _ in range(4)]
    out = []
    for _ in range(inputs):
        shown = shared if what == "score" else ids(rng, 800)
        context = shown + ids(rng, 20)
        out += [(context, label) for label in labels]
    return out


def generating(what: str, share: float) -> tuple[list[list[int]], list[int], int]:
    """(prompts, new tokens of each, samples a prompt)."""
    rng = random.Random(1)
    if what == "samples":
        return [ids(rng, 512)], [64], 16
    if what == "stream":
        return [ids(rng, 32)], [128], 1
    count = max(32, int(128 * share))
    return [ids(rng, rng.randint(8, 64)) for _ in range(count)], [rng.randint(16, 256) for _ in range(count)], 1
