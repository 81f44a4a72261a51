"""Which models follow attention plans: tried once on each model, because no flag of transformers says so.

Some classes never call the registered attention function, some pass it what a plan cannot honour, hybrid and recurrent
ones keep state that a plan does not know of, and some positions depend on the length of the forward. Those run through
transformers' own caches and full forwards behind the same API.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tutelage.engine.plan import Walk
from tutelage.engine.trie import Trie
from tutelage.model.attention import NAME, using
from tutelage.model.forward import call, evaluating, learned_prompt, vocabulary
from tutelage.model.plans import StoredKeys

log = logging.getLogger("tutelage")

_LENGTH_DEPENDENT = ("dynamic", "longrope")


@dataclass(frozen=True)
class Support:
    """plans: whether the model follows plans, else `reason`; token_bytes: keys and values of one token, all layers."""

    plans: bool
    reason: str = ""
    token_bytes: int = 0


_LOCK = threading.Lock()
_TOLD: set[type] = set()


def support(model: Any) -> Support:
    """What was found of this model, in its present type and autocast; tried at the first call.

    The first refusal is logged, once a class.
    """
    first = next(model.parameters())
    kind = first.device.type
    key = (first.dtype, kind, torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None)
    with _LOCK:
        known: dict[Any, Support] = model.__dict__.setdefault("_tutelage_support", {})
        if key not in known:
            with torch.inference_mode(), evaluating(model):
                known[key] = _try(model)
            if not known[key].plans and type(model) not in _TOLD:
                _TOLD.add(type(model))
                log.warning("%s runs without shared prefixes: %s", type(model).__name__, known[key].reason)
        return known[key]


def _try(model: Any) -> Support:
    config = model.config.get_text_config()
    if getattr(model.config, "is_encoder_decoder", False):
        return Support(False, "it is an encoder-decoder")
    prompt = learned_prompt(model)
    if prompt is not None:
        return Support(False, f"it has a learned prompt ({prompt.peft_type.value})")
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        return Support(False, f"it has layers of type {', '.join(sorted(map(str, kinds)))}")
    rope = getattr(config, "rope_parameters", None) or {}
    if isinstance(rope, dict) and rope.get("rope_type") in _LENGTH_DEPENDENT:
        return Support(False, f"its {rope['rope_type']} positions depend on the length")
    vocab = vocabulary(model)
    rng = np.random.default_rng(0)
    head = rng.integers(vocab, size=7)
    rows = [np.concatenate([head[:n], rng.integers(vocab, size=m)]) for n, m in ((7, 3), (7, 2), (4, 5))]
    device = next(model.parameters()).device
    try:
        ids = [torch.from_numpy(row)[None].to(device) for row in rows]
        expected = [call(model, input_ids=row, use_cache=False).logits[0] for row in ids]
        trie = Trie(rows)
        # small units and forwards, so that every kind of part occurs
        walk = Walk(trie.nodes, 6, device, keep=lambda node: True, small=4)
        found, calls, windows = {}, [], 0
        for chunk in walk.chunks():
            with using(model, chunk.plan) as count:
                logits = call(
                    model, input_ids=chunk.ids[None], position_ids=chunk.positions[None], use_cache=False
                ).logits[0]  # fmt: skip
                calls.append(count.calls)
                windows += count.windows
            for order, at in chunk.starts.items():
                found[order] = logits[at : at + trie.nodes[order].length]
    except Exception as problem:  # whatever a family's own code raises means the same: it does not work there
        return Support(False, f"{type(problem).__name__}: {problem}")
    layers = config.num_hidden_layers
    if any(n != layers for n in calls):
        return Support(False, f"its attention was asked {calls[0]} times by {layers} layers under the name {NAME!r}")
    if not windows and _windowed(config):
        return Support(False, "its sliding window does not reach its attention")
    for leaf, wanted in zip(trie.leaf, expected):
        made = torch.cat([found[node.order] for node in leaf.path()]).float()
        scale = 1 + wanted.float().abs().max()
        limit = 1e-3 if wanted.dtype == torch.float32 and not torch.is_autocast_enabled(device.type) else 5e-2
        gap = float((made - wanted.float()).abs().max() / scale)
        if not gap <= limit:
            return Support(False, f"its logits differ by {gap:.1e} under a plan")
    return Support(True, "", _token_bytes(walk.stored[0]))


def _windowed(config: Any) -> bool:
    """Whether some layer has a window shorter than the context; the probe is too short to notice one."""
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if not window or (kinds is not None and "sliding_attention" not in kinds):
        return False
    if kinds is None and getattr(config, "use_sliding_window", True) is False:
        return False
    return window < (getattr(config, "max_position_embeddings", None) or window + 1)


def _token_bytes(kept: StoredKeys) -> int:
    return sum(x.shape[0] * x.shape[2] * x.element_size() for pair in kept.layers.values() for x in pair)
