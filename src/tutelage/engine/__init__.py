"""Engines: one interface for generation and scoring, on local weights or over HTTP."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tutelage.engine.requests import Cloze, Completion, Output, Piece, SamplingParams, Score

if TYPE_CHECKING:
    from tutelage.engine.local import LocalEngine
    from tutelage.engine.remote import RemoteEngine

__all__ = [
    "Cloze", "Completion", "LocalEngine", "Output", "Piece", "RemoteEngine", "SamplingParams", "Score", "load",
]  # fmt: skip


def load(
    path_or_url: str | os.PathLike[str], device: str = "auto", dtype: Any = "auto", model: str | None = None
) -> LocalEngine | RemoteEngine:
    """An engine on a model folder, run directory or hub id, or on an OpenAI-compatible server's ".../v1" address.

    Causal LMs, encoder-decoders, and masked LMs, which only score. ``device="auto"`` takes a GPU if there is one;
    ``model`` names the model on a server.
    Raises DataError when nothing loadable is there.
    """
    if str(path_or_url).startswith(("http://", "https://")):
        from tutelage.engine.remote import RemoteEngine

        return RemoteEngine(str(path_or_url), model=model)
    import torch

    from tutelage.engine.local import LocalEngine
    from tutelage.model.hub import load_model

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded, tokenizer = load_model(
        path_or_url, dtype=dtype, attn_implementation="sdpa", any_kind=True, learned_prompt=True
    )
    loaded.to(torch.device(device))  # type: ignore[arg-type]
    return LocalEngine(loaded.eval(), tokenizer)


def __getattr__(name: str) -> Any:
    if name == "LocalEngine":
        from tutelage.engine.local import LocalEngine

        return LocalEngine
    if name == "RemoteEngine":
        from tutelage.engine.remote import RemoteEngine

        return RemoteEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
