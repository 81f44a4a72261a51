"""Creating, loading, resizing and saving Hugging Face models together with their tokenizers."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForPreTraining, AutoTokenizer, PreTrainedModel

from tutelage.core.atomic import write_folder
from tutelage.core.errors import ConfigError, DataError, TutelageError
from tutelage.model.kinds import AUTO, WORDS, Kind, config_kind, stored_kind
from tutelage.model.presets import PRESETS, build_config, preset_of
from tutelage.text.chat import turn_end_id

Tokenizer = Any
"""A transformers tokenizer (PreTrainedTokenizerBase)."""

_DTYPES = {
    "float32": torch.float32, "fp32": torch.float32, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
    "float16": torch.float16, "fp16": torch.float16,
}  # fmt: skip


def resolve_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """``"float32"``, ``"bf16"``, a torch dtype, or ``"auto"``/None (which give None: the checkpoint's own)."""
    if dtype is None or dtype == "auto":
        return None
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in _DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}; known: auto, {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def parameter_count(model: nn.Module, trainable: bool = False) -> int:
    """Number of parameters, shared ones counted once; only the trainable ones if asked."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def set_token_ids(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """Write the tokenizer's pad, bos and eos ids into the model's config and generation config.

    A chat model's generation also ends with the turn, so that other libraries' generation stops there too.
    """
    generation = getattr(model, "generation_config", None)
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        value = getattr(tokenizer, key, None)
        if value is None:
            continue
        setattr(model.config, key, value)
        if generation is not None and key == "eos_token_id" and tokenizer.chat_template:
            value = list(dict.fromkeys((value, turn_end_id(tokenizer))))
        if generation is not None:
            setattr(generation, key, value)


def create_model(
    name: str,
    tokenizer: Tokenizer,
    max_length: int,
    seed: int = 0,
    dtype: str | torch.dtype = "float32",
    attn_implementation: str = "eager",
    **overrides: Any,
) -> PreTrainedModel:
    """A randomly initialised model of preset ``name`` (``preset:`` may precede it): a causal LM, a masked LM or an
    encoder-decoder, as the preset is.

    The same seed gives the same weights, whatever the global generator's state, which is left untouched.
    ``architectures=["BertForPreTraining"]``: with the next-sentence head.
    """
    vocab_size = overrides.pop("vocab_size", len(tokenizer))
    config = build_config(name, vocab_size, max_length, **_padding(name, tokenizer), **overrides)
    auto = AUTO[config_kind(config)]
    if "BertForPreTraining" in (config.architectures or ()):
        auto = AutoModelForPreTraining
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = new_model(config, auto, attn_implementation=attn_implementation)
    model = model.to(resolve_dtype(dtype) or torch.float32)
    set_token_ids(model, tokenizer)
    return model


def _padding(name: str, tokenizer: Tokenizer) -> dict[str, int]:
    """The padding id of families in which it shapes the model: RoBERTa counts positions from it, T5 decodes from it."""
    family, pad = preset_of(name)["family"], getattr(tokenizer, "pad_token_id", None)
    if pad is None or family not in ("bert", "roberta", "t5"):
        return {}
    return {"pad_token_id": pad, **({"decoder_start_token_id": pad} if family == "t5" else {})}


def new_model(config: Any, auto: Any, **more: Any) -> Any:
    """A model of `config` by the auto class, as the config's paper has it."""
    model = auto.from_config(config, **more)
    if getattr(config, "scale_decoder_outputs", True) is False:
        # T5 1.1 has an output layer of its own; transformers 5 ties it, unless a checkpoint holds two
        table = model.get_input_embeddings().weight
        model.lm_head.weight = nn.Parameter(torch.randn_like(table) * table.shape[1] ** -0.5)
        model.config.tie_word_embeddings = False
    return model


def find_model_dir(path: str | os.PathLike[str]) -> Path | None:
    """The folder of a model or an adapter: ``path`` itself, or ``path/model`` of a run directory; None if neither."""
    for folder in (Path(path), Path(path) / "model"):
        if (folder / "config.json").is_file() or is_adapter(folder):
            return folder
    return None


def is_adapter(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds an adapter in peft's format and no model."""
    return (Path(folder) / "adapter_config.json").is_file() and not (Path(folder) / "config.json").is_file()


def _looks_local(name: str) -> bool:
    """Whether a name that holds no model must be a path rather than a hub id (owner/name)."""
    # "runs/sft" has a hub id's form; if ./runs exists, asking the hub would only hide the mistake
    owner, _, rest = name.partition("/")
    if Path(name).exists() or name.startswith((".", "/", "~")) or "/" in rest:
        return True
    return bool(rest) and Path(owner).is_dir()


def model_source(path_or_id: str | os.PathLike[str]) -> str:
    """What ``from_pretrained`` takes: the folder of a model folder or run directory, else the hub id itself.

    Raises DataError for a preset, and for a path that holds no model.
    """
    name = str(path_or_id)
    if name.removeprefix("preset:") in PRESETS and not Path(name).exists():
        raise DataError(f"{name!r} is a preset, not trained weights; use create_model")
    folder = find_model_dir(name)
    if folder is None and _looks_local(name):
        raise DataError(f"no model in {name!r}: neither it nor its model/ holds a config.json")
    return str(folder or name)


def load_tokenizer(path_or_id: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a model folder, a run directory (its ``tokenizer/`` or ``model/``) or a hub id.

    Raises DataError when there is none.
    """
    name = str(path_or_id)
    made = Path(name) / "tokenizer"
    folder = made if made.is_dir() else find_model_dir(name)
    wanted = "expected a folder with a tokenizer.json, such as tutelage tokenizer writes"
    if folder is None and not Path(name).is_dir() and _looks_local(name):
        raise DataError(f"tokenizer {name!r}: no such folder; {wanted}")
    try:
        return AutoTokenizer.from_pretrained(str(folder or name))
    except Exception as error:
        words = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"tokenizer {name!r}: cannot be read ({words}); {wanted}") from error


@contextmanager
def reading(name: str, folder: Path | None, what: str) -> Iterator[None]:
    """Context in which a library reads ``what`` from ``folder``: its errors become a DataError that names the file."""
    try:
        yield
    except TutelageError:
        raise
    except Exception as error:
        for file in sorted(folder.glob("*.safetensors")) if folder else []:
            try:
                with safe_open(str(file), "pt"):
                    pass
            except Exception as damage:
                raise DataError(f"{file}: damaged or cut short ({damage}); write or copy it again") from error
        raise DataError(f"could not load {what} from {name!r}: {error}") from error


def load_model(
    path_or_id: str | os.PathLike[str],
    tokenizer: Tokenizer | None = None,
    dtype: str | torch.dtype = "auto",
    attn_implementation: str | None = "eager",
    any_kind: bool = False,
    learned_prompt: bool = False,
) -> tuple[PreTrainedModel, Tokenizer]:
    """The causal LM and tokenizer of a local folder, a run directory (its ``model/``) or a hub id.

    Given a ``tokenizer``, the embeddings are resized to it. ``attn_implementation="eager"`` is the quickest for the
    short sequences that are trained on a CPU. ``any_kind``: masked LMs and encoder-decoders are loaded too, else they
    are refused. A folder with peft's adapter gives its base with the adapter merged in; a learned prompt cannot be
    merged: ``learned_prompt`` gives peft's model, else it is refused. Raises DataError when nothing loadable is there.
    """
    name = str(path_or_id)
    source, folder = model_source(name), find_model_dir(name)
    if tokenizer is None:
        tokenizer = load_tokenizer(source)
    if folder is not None and is_adapter(folder):
        return _load_adapter(folder, tokenizer, dtype, attn_implementation, any_kind, learned_prompt), tokenizer
    with reading(name, folder, "a causal language model"):
        kind = stored_kind(source)
        if kind != "causal" and not any_kind:
            raise DataError(f"{name!r} holds {WORDS[kind]}; a causal language model is needed here")
        model, told = AUTO[kind].from_pretrained(
            source, dtype=resolve_dtype(dtype) or "auto", attn_implementation=attn_implementation,
            output_loading_info=True,
        )  # fmt: skip
        absent = sorted(told["missing_keys"])
        if absent:  # transformers would draw them at random
            more = f" and {len(absent) - 1} more" if absent[1:] else ""
            raise DataError(f"{name!r}: its weights lack {absent[0]}{more}; write or copy the model again")
    resize_for(model, tokenizer)
    return model, tokenizer


def kind_of(path_or_id: str | os.PathLike[str]) -> Kind:
    """The kind of model in a folder, run directory or hub id, by its configs alone; an adapter has its base's."""
    name = str(path_or_id)
    source, folder = model_source(name), find_model_dir(name)
    with reading(name, folder, "a language model"):
        if folder is not None and is_adapter(folder):
            from peft import PeftConfig

            return kind_of(str(PeftConfig.from_pretrained(str(folder)).base_model_name_or_path))
        return stored_kind(source)


def _load_adapter(
    folder: Path, tokenizer: Tokenizer, dtype: Any, attention: str | None, any_kind: bool, learned_prompt: bool
) -> Any:
    """The adapter's base under it: merged, or peft's own model where it is a learned prompt."""
    from peft import PeftConfig, PeftModel

    with reading(str(folder), folder, "an adapter"):
        config = PeftConfig.from_pretrained(str(folder))
        base = str(config.base_model_name_or_path)
        if config.is_prompt_learning and not learned_prompt:
            raise DataError(
                f"{folder} holds a learned prompt ({config.peft_type.value}), which cannot be merged into a model: it "
                f"answers (generate, chat, rank, icl), but is not trained further; train its base, {base}"
            )
        if _looks_local(base) and find_model_dir(base) is None:
            raise DataError(f"{folder}/adapter_config.json: no model in base_model_name_or_path={base!r}; set it anew")
        model, _ = load_model(base, tokenizer, dtype, attention, any_kind)
        wrapped: Any = PeftModel.from_pretrained(model, str(folder))
    return wrapped if config.is_prompt_learning else wrapped.merge_and_unload()


def resize_for(model: PreTrainedModel, tokenizer: Tokenizer) -> bool:
    """Make the model's embeddings hold every token of the tokenizer and set the special ids; True if they grew.

    Embeddings are never shrunk: many checkpoints pad their vocabulary on purpose.
    """
    embeddings: Any = model.get_input_embeddings()
    grew = len(tokenizer) > int(embeddings.num_embeddings)
    if grew:
        model.resize_token_embeddings(len(tokenizer))
    set_token_ids(model, tokenizer)
    return grew


@torch.no_grad()
def settle_unseen(model: Any, seen: Tensor) -> int:
    """Set the embedding rows of tokens that training never saw to the mean of those it saw; returns how many.

    ``seen``: bool [V]. The softmax pushes an absent token down at every step, and Adam makes full steps of tiny
    gradients: chat tokens ended up so far away that fine-tuning began at a loss of 13 nats.
    """
    rows = 0
    tables = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m}
    for weight in tables.values():
        absent = torch.ones(weight.shape[0], dtype=torch.bool)
        absent[: len(seen)] = ~seen[: weight.shape[0]]
        if absent.any() and not absent.all():
            weight[absent] = weight[~absent].mean(0)
            rows = int(absent.sum())
    return rows


def merged(model: Any) -> PreTrainedModel:
    """A LoRA model's weights as a plain model (a copy; the wrapped one goes on training); other models as they are."""
    if not hasattr(model, "merge_and_unload"):
        return model
    return copy.deepcopy(model).merge_and_unload()


def save_model(model: Any, tokenizer: Tokenizer | None, folder: str | os.PathLike[str]) -> Path:
    """Write model (safetensors) and tokenizer to ``folder`` atomically; an older folder there is replaced.

    A LoRA model is written merged, so that every model folder is complete by itself.
    """
    model = merged(model)

    def write(aside: Path) -> None:
        model.save_pretrained(str(aside), safe_serialization=True)
        if tokenizer is not None:
            tokenizer.save_pretrained(str(aside))

    return write_folder(folder, write)
