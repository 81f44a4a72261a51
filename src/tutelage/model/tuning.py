"""What of a model is trained: all of it, or one of peft's small additions to a frozen model.

full     every weight
lora     low-rank updates of the linear layers (Hu et al. 2021)
dora     the same with magnitude and direction apart (Liu et al. 2024)
ia3      factors on keys, values and the inner feed-forward states (Liu et al. 2022)
prompt   virtual tokens before every text (Lester et al. 2021)
ptuning  virtual tokens that a small network makes (Liu et al. 2021)
prefix   keys and values of virtual tokens in every layer (Li and Liang 2021)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field

from tutelage.core.atomic import write_folder
from tutelage.core.errors import ConfigError
from tutelage.model.adapters import LoraSettings
from tutelage.model.hub import find_model_dir
from tutelage.model.kinds import model_kind

Method = Literal["full", "lora", "dora", "ia3", "prompt", "ptuning", "prefix"]
LEARNED_PROMPTS = ("prompt", "ptuning", "prefix")
"""Methods that put virtual tokens before the text; they cannot be merged into the weights."""
METHODS: tuple[str, ...] = get_args(Method)
_TASKS = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}


class PromptSettings(BaseModel):
    """Shape of a learned prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    tokens: int = Field(16, ge=1)
    """Virtual tokens."""
    text: str | None = None
    """method=prompt: they begin as the embeddings of this text, repeated as needed; without it, of random tokens."""


def add_adapter(
    model: Any, method: str, lora: LoraSettings | None = None, prompt: PromptSettings | None = None,
    tokenizer: Any = None, tokens: Sequence[int] = (), seed: int = 0,
) -> Any:  # fmt: skip
    """The model wrapped by peft: itself frozen, the method's own parameters trainable, as drawn with `seed`.

    `tokens`: ids whose embeddings lora and dora train too (a chat template's role tokens, which a base model has never
    seen). `tokenizer`: of `prompt.text`. ConfigError where peft cannot do it on this model.
    """
    from peft import get_peft_model

    lora, prompt = lora or LoraSettings(r=8), prompt or PromptSettings(tokens=16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            wrapped = get_peft_model(model, _config(model, method, lora, prompt, tokens))
        except (ValueError, KeyError) as error:
            raise ConfigError(f"method={method} cannot be used on {type(model).__name__}: {error}") from error
    if method == "prompt" and prompt.text:
        _begin_as(wrapped, tokenizer(prompt.text, add_special_tokens=False)["input_ids"], prompt)
    return wrapped


def _config(model: Any, method: str, lora: LoraSettings, prompt: PromptSettings, tokens: Sequence[int]) -> Any:
    from peft import IA3Config, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, PromptTuningInit

    task: dict[str, Any] = {"task_type": _TASKS[model_kind(model)]}
    if method in ("lora", "dora"):
        return lora.config(**task, use_dora=method == "dora", trainable_token_indices=_rows(model, tokens, lora))
    if method == "ia3":
        return IA3Config(**task)
    virtual: dict[str, Any] = {**task, "num_virtual_tokens": prompt.tokens}
    if method == "prefix":
        return PrefixTuningConfig(**virtual)
    if method == "ptuning":
        width = model.get_input_embeddings().weight.shape[1]
        return PromptEncoderConfig(**virtual, encoder_hidden_size=width)
    return PromptTuningConfig(**virtual, prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB)


def _rows(model: Any, tokens: Sequence[int], lora: LoraSettings) -> dict[str, list[int]] | None:
    """Peft's way to say which rows of the two tables of embeddings are trained (of tied ones the first); a table that
    has an adapter of its own is left to it."""
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    if tables[1] is None or tables[1].weight is tables[0].weight:
        tables.pop()
    names = {id(module): name for name, module in model.named_modules()}
    found = {names[id(table)].rpartition(".")[2]: list(tokens) for table in tables if tokens}
    return {name: rows for name, rows in found.items() if name not in lora.targets} or None


@torch.no_grad()
def _begin_as(wrapped: Any, ids: Sequence[int], prompt: PromptSettings) -> None:
    if not ids:
        raise ConfigError(f"prompt.text={prompt.text!r} has no token; leave it out for random ones")
    table = wrapped.get_input_embeddings().weight
    chosen = torch.tensor([ids[i % len(ids)] for i in range(prompt.tokens)])
    wrapped.prompt_encoder[wrapped.active_adapter].embedding.weight.copy_(table[chosen])


def check_merge(method: str, merge: bool) -> None:
    """ConfigError for a method whose result cannot be merged."""
    if merge and method in LEARNED_PROMPTS:
        others = ", ".join(m for m in METHODS if m not in ("full", *LEARNED_PROMPTS))
        raise ConfigError(
            f"merge=true cannot be used with method={method}: virtual tokens are not part of the weights. Leave it out "
            f"(generate, chat, rank and icl load the adapter), or choose method={others}"
        )
    if merge and method == "full":
        raise ConfigError("merge=true with method=full: there is no adapter; leave it out")


def save_adapter(
    wrapped: Any, tokenizer: Any, folder: str | os.PathLike[str], base: str, embeddings: bool = False
) -> Path:
    """Write the adapter as peft does, beside the tokenizer, atomically; `PeftModel.from_pretrained` loads it on `base`.

    `base`: the folder, run directory or hub id that `wrapped` was loaded from. `embeddings`: they have grown since and
    are saved too.
    """
    found = find_model_dir(base)
    name = str(found.resolve()) if found else base
    for config in wrapped.peft_config.values():
        config.base_model_name_or_path = name
        for key in ("target_modules", "feedforward_modules"):
            if isinstance(getattr(config, key, None), set):  # whose order changes from process to process
                setattr(config, key, sorted(getattr(config, key)))

    def write(aside: Path) -> None:
        wrapped.save_pretrained(str(aside), save_embedding_layers=embeddings)
        (aside / "README.md").unlink(missing_ok=True)  # a model card full of blanks
        tokenizer.save_pretrained(str(aside))

    return write_folder(folder, write)
