"""Models with a learned prompt (peft's prompt tuning, p-tuning, prefix tuning): virtual tokens before every text.

Peft's own forward puts them there, so prompts are prefilled by it, in batches of one length (padding would stand
between the learned prompt and the text), and the model inside goes on from the cache. Scores are forwards as of any
model. What peft cannot do by a forward of token ids alone is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tutelage.core.errors import DataError
from tutelage.engine.cache import select_rows
from tutelage.engine.decode import BatchDecoder
from tutelage.model.forward import call, learned_prompt, plain_model
from tutelage.model.kinds import WORDS, Kind


def virtual_tokens(model: Any) -> int:
    """Tokens of the context that a learned prompt takes."""
    config = learned_prompt(model)
    return 0 if config is None else int(config.num_virtual_tokens)


def check_prompt(model: Any, kind: Kind) -> None:
    """Raise DataError for a learned prompt that cannot be run."""
    config = learned_prompt(model)
    if config is None:
        return
    name = config.peft_type.value
    if kind != "causal":
        raise DataError(f"peft's {name} on {WORDS[kind]} is not supported; on a causal LM it is")
    if name == "MULTITASK_PROMPT_TUNING":
        raise DataError(f"peft's {name} needs task_ids with every forward, which the engine has no place for")


class PromptBatch:
    """Prompts of one length after a prefill through peft (the interface of ``CausalBatch``)."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], steps: int, pad: int, device: torch.device):
        ids = torch.tensor([list(p) for p in prompts], device=device)
        out = call(model, input_ids=ids, use_cache=True, logits_to_keep=1)
        self.model, self.cache = plain_model(model), out.past_key_values
        self.logits = out.logits[:, -1].float()

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) the given rows (int64 indices)."""
        select_rows(self.cache, rows)

    def step(self, last_B: Tensor) -> Tensor:
        """Logits [B, V] (float32) after one more token a row."""
        out = call(self.model, input_ids=last_B[:, None], cache=self.cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1].float()


class PromptDecoder(BatchDecoder):
    """Decodes one batch of prompts of one length."""

    begin = PromptBatch
