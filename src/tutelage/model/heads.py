"""Scalar heads: the reward model (one score a sequence) and the value model (one value a token).

A reward model is the family's ``AutoModelForSequenceClassification`` with ``num_labels=1``, so that other libraries
can load it; the score is read at the last real token. Beside the hidden state it may see five log-probability
features of the frozen SFT model, which is what lets a small reward model tell right from wrong.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedModel

from tutelage.core.atomic import write_folder
from tutelage.core.errors import DataError
from tutelage.model.forward import call, position_ids
from tutelage.model.hub import (
    find_model_dir,
    load_model,
    load_tokenizer,
    merged,
    reading,
    resize_for,
    set_token_ids,
)

FEATURES = 5
"""Log-probability features a response: three lowest token log-probs, their sum / 10, the length / 10."""
_FEATURE_FILE = "features"
_SCORE_FILE = "score.safetensors"


def last_real_index(attention_mask: Tensor) -> Tensor:
    """Index [B] of the last 1 in each row of ``attention_mask`` [B, T] (0 for an empty row)."""
    places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (places * attention_mask.long()).argmax(dim=1)


def _trunk_hidden(
    trunk: nn.Module, input_ids: Tensor, attention_mask: Tensor, positions: Tensor | None = None
) -> Tensor:
    if positions is None:
        positions = position_ids(attention_mask)
    out = call(trunk, input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=False)
    return out.last_hidden_state


class FeatureHead(nn.Module):
    """MLP features [B, 5] -> score [B]; the last layer starts at zero, so it changes nothing before training."""

    def __init__(self, inner: int = 32) -> None:
        super().__init__()
        self.inner = inner
        self.hidden = nn.Linear(FEATURES, inner)
        self.out = nn.Linear(inner, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(features))).squeeze(-1)


class PlainScorer(nn.Module):
    """Trunk and score layer for families that have no sequence-classification class (Mamba, BitNet, CodeGen...).

    It is saved as the bare trunk with the score layer beside it.
    """

    def __init__(self, base_model: PreTrainedModel) -> None:
        super().__init__()
        self.base_model = base_model
        config = base_model.config.get_text_config()
        width = config.hidden_size
        self.score = nn.Linear(width, 1, bias=False)

    @property
    def config(self) -> Any:
        """The trunk's config."""
        return self.base_model.config

    def get_input_embeddings(self) -> nn.Module:
        return self.base_model.get_input_embeddings()

    def resize_token_embeddings(self, size: int) -> nn.Module:
        return self.base_model.resize_token_embeddings(size)

    def save_pretrained(self, folder: str, **kwargs: Any) -> None:
        self.base_model.save_pretrained(folder, **kwargs)
        save_file({"weight": self.score.weight.detach().cpu()}, str(Path(folder) / _SCORE_FILE))

    @classmethod
    def from_pretrained(cls, folder: str, attn_implementation: str) -> PlainScorer:
        made = cls(AutoModel.from_pretrained(folder, attn_implementation=attn_implementation))
        weight = load_file(str(Path(folder) / _SCORE_FILE))["weight"]
        with torch.no_grad():
            made.score.to(weight.dtype).weight.copy_(weight)
        return made


def _new_scorer(config: Any, attn_implementation: str | None) -> Any:
    kinds = {"attn_implementation": attn_implementation}
    if type(config) in AutoModelForSequenceClassification._model_mapping:
        return AutoModelForSequenceClassification.from_config(config, **kinds)
    return PlainScorer(AutoModel.from_config(config, **kinds))


def _read_scorer(folder: Path, attn_implementation: str) -> Any:
    if (folder / _SCORE_FILE).is_file():
        return PlainScorer.from_pretrained(str(folder), attn_implementation)
    kinds = AutoConfig.from_pretrained(str(folder)).architectures or []
    if not any("SequenceClassification" in kind for kind in kinds):
        raise DataError(f"{str(folder)!r} holds {', '.join(kinds) or 'an unknown model'}, not a reward model")
    return AutoModelForSequenceClassification.from_pretrained(
        str(folder), num_labels=1, attn_implementation=attn_implementation
    )


def _read_features(folder: Path) -> FeatureHead | None:
    file = folder / f"{_FEATURE_FILE}.json"
    if not file.is_file():
        return None
    head = FeatureHead(int(json.loads(file.read_text(encoding="utf-8"))["inner"]))
    head.load_state_dict(load_file(str(file.with_suffix(".safetensors"))))
    return head


class RewardModel(nn.Module):
    """Sequence -> score. ``model`` is a sequence-classification model with one label, or a PlainScorer.

    ``reward_shift`` is subtracted from every score (it makes the demonstrations' mean score 0; Stiennon et al. 2020).
    """

    def __init__(self, model: Any, features: FeatureHead | None = None, reward_shift: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.features = features
        self.reward_shift = reward_shift

    @property
    def config(self) -> Any:
        """The transformers config of the scorer."""
        return self.model.config

    @property
    def trunk(self) -> nn.Module:
        """The decoder without its head."""
        return self.model.base_model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        features: Tensor | None = None,
        position_ids: Tensor | None = None,
        ends: Tensor | None = None,
    ) -> Tensor:
        """Scores [B] at the last real token of input_ids [B, T] (right padding; left padding works too).

        ``features`` [B, 5] (see ``logprob_features``) is required exactly when the model has a feature head. With
        ``ends`` int64 [N, 2], scores [N] at these (row, token) places instead; position_ids [B, T] and attention_mask
        bool [B, 1, T, T] then say what is a response and what it sees (train/packs.py).
        """
        if ends is None:
            hidden_BTD = _trunk_hidden(self.trunk, input_ids, attention_mask)
            rows = torch.arange(input_ids.shape[0], device=input_ids.device)
            last_BD = hidden_BTD[rows, last_real_index(attention_mask)]
        else:
            dtype = next(self.parameters()).dtype
            bias = torch.zeros(attention_mask.shape, dtype=dtype, device=attention_mask.device)
            bias.masked_fill_(~attention_mask, torch.finfo(dtype).min)
            last_BD = _trunk_hidden(self.trunk, input_ids, bias, position_ids)[ends[:, 0], ends[:, 1]]
        scores_B = self.model.score(last_BD).squeeze(-1)
        if self.features is not None:
            if features is None:
                raise DataError("this reward model reads log-probability features, and none were given")
            scores_B = scores_B + self.features(features.to(scores_B.dtype))
        return scores_B - self.reward_shift

    def save(
        self,
        folder: str | os.PathLike[str],
        tokenizer: Any | None = None,
        beside: Mapping[str, dict[str, Tensor]] | None = None,
    ) -> Path:
        """Write the model (and feature head, shift, tokenizer) to ``folder`` atomically; ``beside`` maps names of
        further safetensors files to their tensors."""

        def write(aside: Path) -> None:
            self.model.config.reward_shift = float(self.reward_shift)
            self.model.save_pretrained(str(aside), safe_serialization=True)
            if self.features is not None:
                state = {k: v.detach().contiguous().cpu() for k, v in self.features.state_dict().items()}
                save_file(state, str(aside / f"{_FEATURE_FILE}.safetensors"))
                shape = {"inputs": FEATURES, "inner": self.features.inner}
                (aside / f"{_FEATURE_FILE}.json").write_text(json.dumps(shape), encoding="utf-8")
            for name, tensors in (beside or {}).items():
                save_file({key: value.contiguous().cpu() for key, value in tensors.items()}, str(aside / name))
            if tokenizer is not None:
                tokenizer.save_pretrained(str(aside))

        return write_folder(folder, write)

    @classmethod
    def load(cls, path: str | os.PathLike[str], attn_implementation: str = "eager") -> RewardModel:
        """Read what ``save`` wrote (a folder, or a run directory with ``model/``). Raises DataError if it is none."""
        folder = find_model_dir(path)
        if folder is None:
            raise DataError(f"no reward model in {str(path)!r}: neither it nor its model/ holds a config.json")
        with reading(str(path), folder, "a reward model"):
            model, head = _read_scorer(folder, attn_implementation), _read_features(folder)
        return cls(model, head, float(getattr(model.config, "reward_shift", 0.0)))


def create_reward_model(
    sft: str | os.PathLike[str] | PreTrainedModel, tokenizer: Any | None = None, seed: int = 0, features: bool = False
) -> RewardModel:
    """A reward model on a copy of the SFT model's trunk; score head N(0, 1/sqrt(d+1)) (Stiennon et al. 2020, app. B).

    ``sft`` is a folder, run directory, hub id or live model (which is not changed). Dropout is set to 0.
    """
    if isinstance(sft, (str, os.PathLike)):
        source, tokenizer = load_model(sft, tokenizer or load_tokenizer(sft))
    else:
        # a LoRA model is merged into a copy first
        source = merged(sft)
    config = copy.deepcopy(source.config)
    config.num_labels = 1
    config.architectures = None
    for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout", "dropout", "hidden_dropout"):
        if hasattr(config, key):
            setattr(config, key, 0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _new_scorer(config, source.config._attn_implementation)
        width = model.score.weight.shape[1]
        nn.init.normal_(model.score.weight, std=1.0 / (width + 1) ** 0.5)
        if model.score.bias is not None:
            nn.init.zeros_(model.score.bias)
        head = FeatureHead() if features else None
    parameter = next(source.parameters())
    model.base_model.load_state_dict(source.base_model.state_dict())
    model.to(device=parameter.device, dtype=parameter.dtype)
    if tokenizer is not None:
        resize_for(model, tokenizer)
        set_token_ids(model, tokenizer)
    return RewardModel(model, head.to(parameter.device) if head is not None else None)


class ValueModel(nn.Module):
    """Per-token values: a decoder trunk and a linear head; the critic of PPO."""

    def __init__(self, trunk: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Values [B, T]: entry t is read from the hidden state after token t."""
        return self.head(_trunk_hidden(self.trunk, input_ids, attention_mask)).squeeze(-1)

    @classmethod
    def from_reward(cls, reward_model: RewardModel) -> ValueModel:
        """A critic that starts as a copy of the reward model: trunk, score head, and the shift as the head's bias."""
        trunk = copy.deepcopy(reward_model.trunk)
        score = reward_model.model.score
        head = nn.Linear(score.weight.shape[1], 1).to(device=score.weight.device, dtype=score.weight.dtype)
        with torch.no_grad():
            head.weight.copy_(score.weight)
            old = score.bias if score.bias is not None else torch.zeros_like(head.bias)
            head.bias.copy_(old - reward_model.reward_shift)
        return cls(trunk, head)


@torch.no_grad()
def logprob_features(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, response_mask: Tensor) -> Tensor:
    """Features [B, 5] of the responses under a frozen causal LM.

    input_ids, attention_mask, response_mask: [B, T]; response_mask marks response tokens (the end token included).
    The three lowest log-probs (ascending; 0 where a response is shorter), their sum / 10 and the length / 10.
    """
    positions = position_ids(attention_mask)
    out = call(model, input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=False)
    logits_BTV = out.logits[:, :-1].float()
    targets_BT = input_ids[:, 1:, None]
    logprobs_BT = logits_BTV.gather(-1, targets_BT).squeeze(-1) - logits_BTV.logsumexp(-1)
    return features_from_logprobs(logprobs_BT, response_mask[:, 1:])


def features_from_logprobs(logprobs_BT: Tensor, response_mask: Tensor) -> Tensor:
    """Features [B, 5] from token log-probs [B, T] and the mask [B, T] of response tokens."""
    mask = response_mask.bool()
    kept = logprobs_BT.float().masked_fill(~mask, 0.0)
    # log-probs are at most 0, so the zeros of other places never displace a response token among the lowest
    padded = nn.functional.pad(kept, (0, max(0, 3 - kept.shape[1])))
    lowest = padded.topk(3, dim=1, largest=False, sorted=True).values
    total = kept.sum(1, keepdim=True) / 10
    length = mask.sum(1, keepdim=True).float() / 10
    return torch.cat([lowest, total, length], dim=1)
