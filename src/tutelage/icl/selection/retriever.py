"""A small bi-encoder: one tower reads queries, another demonstrations, and their inner product is the relevance.

B: batch, V: words, H: width of the frozen states, D: width of the towers' output.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tutelage.core.atomic import write_folder
from tutelage.core.errors import DataError
from tutelage.core.runtime import generators_kept, reseed
from tutelage.icl.selection.context import SelectionContext
from tutelage.icl.selection.embed import hidden_states
from tutelage.icl.selection.lexical import restored_tfidf, tfidf, tfidf_state, unit_rows

Side = Literal["query", "passage"]
Inputs = Any
"""What a tower reads: weights of words (scipy.sparse), frozen hidden states (numpy), or (an encoder that is
trained itself) the texts."""


class WordTower(nn.Module):
    """A linear map of TF-IDF weights, or with ``hidden`` > 0 a perceptron of one hidden layer."""

    def __init__(self, width: int, dim: int, hidden: int) -> None:
        super().__init__()
        # a row of words is sparse: a bag of embeddings is its product with the [V, D] matrix
        self.words = nn.EmbeddingBag(max(width, 1), hidden or dim, mode="sum")
        nn.init.normal_(self.words.weight, std=(hidden or dim) ** -0.5)
        self.out = nn.Sequential(nn.GELU(), nn.Linear(hidden, dim)) if hidden else nn.Identity()

    def forward(self, rows: Any) -> Tensor:
        """Vectors [B, D]; a row without words is the vector of an empty bag."""
        weights = torch.from_numpy(rows.data).float()
        columns, starts = torch.from_numpy(rows.indices), torch.from_numpy(rows.indptr[:-1])
        return self.out(self.words(columns, starts, per_sample_weights=weights))


class StateTower(nn.Module):
    """A linear map of frozen hidden states, standardised by the training texts' mean and deviation; or a perceptron."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        middle = [nn.Linear(width, hidden), nn.GELU()] if hidden else []
        self.out = nn.Sequential(*middle, nn.Linear(hidden or width, dim))

    def settle(self, states: np.ndarray) -> None:
        """Take mean and deviation from the training texts: raw states share one large direction."""
        self.mean.copy_(torch.from_numpy(states.mean(0)))
        self.deviation.copy_(torch.from_numpy(states.std(0)).clamp(min=1e-6))

    def forward(self, rows: np.ndarray) -> Tensor:
        """Vectors [B, D]."""
        width = self.mean.shape[0]
        return self.out((torch.from_numpy(rows).float() - self.mean) / self.deviation / width**0.5)


class TextTower(nn.Module):
    """A Hugging Face encoder, trained as a whole; the mean of its last layer over the tokens (D is its own width)."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer

    def forward(self, texts: list[str]) -> Tensor:
        """Vectors [B, D]; texts are cut at the encoder's own limit."""
        limit = getattr(self.model.config, "max_position_embeddings", None) or 512
        rows = [self.tokenizer(text)["input_ids"][:limit] for text in texts]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


class Retriever(nn.Module):
    """Two towers over one kind of input.

    ``encoder``: "tfidf", "hidden" (the engine's frozen states), or a Hugging Face encoder's name. Build it with
    ``Retriever.create`` or ``Retriever.load``.
    """

    def __init__(self, meta: dict[str, Any], towers: dict[Side, nn.Module], context: SelectionContext) -> None:
        super().__init__()
        self.meta = meta
        self.towers = nn.ModuleDict(towers)  # type: ignore[arg-type]
        self._context = context
        self._words = restored_tfidf(meta) if "vocabulary" in meta else None

    @classmethod
    def create(
        cls, encoder: str, texts: Sequence[str], dim: int, hidden: int, seed: int, context: SelectionContext
    ) -> Retriever:
        """An untrained one; ``texts`` fit the vocabulary or the scale. Both towers begin alike, as plain similarity."""
        meta: dict[str, Any] = {"encoder": encoder, "dim": dim, "hidden": hidden}
        if encoder == "tfidf":
            meta.update(tfidf_state(tfidf(texts)))
        elif encoder == "hidden":
            meta["width"] = int(context.need_local("encoder=hidden").model.config.get_text_config().hidden_size)
        with generators_kept():
            reseed(seed, "retriever")
            towers = _towers(meta, encoder)
        made = cls(meta, towers, context)
        made.towers["passage"].load_state_dict(made.towers["query"].state_dict())
        if encoder == "hidden":
            states = hidden_states(context.engine, texts)
            for tower in towers.values():
                tower.settle(states)  # type: ignore[operator]
        return made

    def inputs(self, texts: Sequence[str]) -> Inputs:
        """What the towers read of these texts. ConfigError where it needs a local model and there is none."""
        if self._words is not None:
            return unit_rows(self._words, texts)
        if self.meta["encoder"] == "hidden":
            states = hidden_states(self._context.need_local("encoder=hidden"), texts)
            if states.shape[1] != self.meta["width"]:
                raise DataError(
                    f"the retriever was trained on states of width {self.meta['width']}, this model's have "
                    f"{states.shape[1]}; load the model that it was trained with"
                )
            return states
        return list(texts)

    def forward(self, inputs: Inputs, side: Side) -> Tensor:
        """Vectors [B, D] of one side."""
        return self.towers[side](inputs)

    @torch.inference_mode()
    def vectors(self, texts: Sequence[str], side: Side, batch: int = 64) -> np.ndarray:
        """Vectors [N, D], float32, without gradients."""
        self.eval()
        inputs = self.inputs(texts)
        parts = [self(take(inputs, range(i, min(i + batch, len(texts)))), side) for i in range(0, len(texts), batch)]
        return torch.cat(parts).numpy() if parts else np.zeros((0, self.meta["dim"]), dtype=np.float32)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write weights (safetensors) and the rest (JSON) to ``folder``, whole or not at all."""

        def write(aside: Path) -> None:
            save_file({k: v.contiguous() for k, v in self.state_dict().items()}, aside / "retriever.safetensors")
            (aside / "retriever.json").write_text(json.dumps(self.meta, ensure_ascii=False), encoding="utf-8")
            tower = self.towers["query"]
            if isinstance(tower, TextTower):
                tower.model.config.save_pretrained(aside / "encoder")
                tower.tokenizer.save_pretrained(aside / "encoder")

        return write_folder(folder, write)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], context: SelectionContext) -> Retriever:
        """What ``save`` wrote. DataError where it is missing or damaged."""
        place = Path(folder)
        if not (place / "retriever.json").is_file():
            raise DataError(f"{place}: no retriever there (retriever.json is missing); train one with save={place}")
        try:
            meta = json.loads((place / "retriever.json").read_text(encoding="utf-8"))
            made = cls(meta, _towers(meta, str(place / "encoder"), weights=False), context)
            made.load_state_dict(load_file(place / "retriever.safetensors"))
        except Exception as error:  # what safetensors, torch and transformers raise for a damaged file
            raise DataError(f"{place}: the retriever cannot be read ({error}); train it again") from error
        return made


def take(inputs: Inputs, chosen: Sequence[int]) -> Inputs:
    """The inputs of those numbers."""
    return [inputs[i] for i in chosen] if isinstance(inputs, list) else inputs[list(chosen)]


def _towers(meta: dict[str, Any], source: str, weights: bool = True) -> dict[Side, nn.Module]:
    """The two towers that ``meta`` describes; ``source``: name or folder of a Hugging Face encoder."""
    sides: tuple[Side, Side] = ("query", "passage")
    if meta["encoder"] == "tfidf":
        return {side: WordTower(len(meta["vocabulary"]), meta["dim"], meta["hidden"]) for side in sides}
    if meta["encoder"] == "hidden":
        return {side: StateTower(meta["width"], meta["dim"], meta["hidden"]) for side in sides}
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    towers: dict[Side, nn.Module] = {}
    for side in sides:
        model = (
            AutoModel.from_pretrained(source) if weights else AutoModel.from_config(AutoConfig.from_pretrained(source))
        )
        meta["dim"] = int(model.config.hidden_size)
        towers[side] = TextTower(model, tokenizer)
    return towers
