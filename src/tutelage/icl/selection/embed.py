"""Texts as vectors, and how like each other two of them are: what nearest neighbours, DPP and vote-k compare.

Q: queries, N: examples of the pool, H: width of a dense vector.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from scipy.sparse import issparse

from tutelage.core.errors import ConfigError, DataError
from tutelage.icl.selection.context import Options, SelectionContext
from tutelage.icl.selection.lexical import tfidf, unit_rows

log = logging.getLogger("tutelage")

By = Literal["bm25", "tfidf", "hidden", "sentence"]
Measure = Literal["cosine", "euclidean", "dot"]


class EmbeddingOptions(Options):
    """How texts become vectors and are compared."""

    by: By = "tfidf"
    """bm25 and tfidf compare words, hidden the local model's states, sentence a sentence-transformers model's."""
    similarity: Measure = "cosine"
    """euclidean is the negative distance (KATE); dot is the plain inner product (OpenICL's flat index)."""
    encoder: str = "sentence-transformers/all-mpnet-base-v2"
    """The sentence-transformers model of by=sentence."""


Rows = Any
"""Vectors [N, H]: a numpy array, or a scipy.sparse matrix of rows (TF-IDF)."""


def embed(groups: Sequence[Sequence[str]], options: EmbeddingOptions, context: SelectionContext) -> list[Rows]:
    """Vectors of each group of texts; all are encoded in one pass, and TF-IDF weights are those of the first group.

    Raises ConfigError where the encoder is not there (no local model, no sentence-transformers).
    """
    if options.by == "bm25":
        raise ConfigError("by=bm25 gives scores and no vectors, which this method compares; choose by=tfidf")
    if options.by == "tfidf":
        model = tfidf(groups[0])
        return [unit_rows(model, group) for group in groups]
    flat = [text for group in groups for text in group]
    if options.by == "hidden":
        vectors = hidden_states(context.need_local("by=hidden"), flat)
    else:
        vectors = sentence_vectors(flat, options.encoder)
    cuts = np.cumsum([len(group) for group in groups])[:-1]
    return np.split(vectors.astype(np.float64), cuts)


def similarity(queries: Rows, pool: Rows, measure: Measure) -> np.ndarray:
    """Similarities [Q, N], float64; a vector of zeros has cosine 0 to everything."""
    product = queries @ pool.T
    inner: np.ndarray = product.toarray() if issparse(product) else product
    if measure == "dot":
        return inner
    a, b = row_norms(queries)[:, None], row_norms(pool)[None]
    if measure == "cosine":
        return inner / np.maximum(a * b, 1e-300)
    return -np.sqrt(np.maximum(a**2 + b**2 - 2 * inner, 0.0))


def row_norms(rows: Rows) -> np.ndarray:
    """Euclidean length [N] of each row."""
    squares = rows.multiply(rows).sum(1) if issparse(rows) else (rows**2).sum(1)
    return np.sqrt(np.asarray(squares).ravel())


def hidden_states(engine: Any, texts: Sequence[str], batch_tokens: int = 4096) -> np.ndarray:
    """The mean over a text's tokens of the model's last hidden layer, float32 [N, H].

    Any causal LM, masked LM or encoder (of an encoder-decoder); texts of like length share a forward of at most
    ``batch_tokens`` padded tokens. Texts beyond the model's context are cut at its end, and the log says how many.
    Raises DataError for a text without tokens.
    """
    import torch

    from tutelage.model.forward import call, evaluating, inference_attention, plain_model
    from tutelage.text.loader import cut_by_tokens

    limit = engine.context_length
    encoded = [engine.encode(text) for text in texts]
    long = sum(len(ids) > limit for ids in encoded)
    if long:
        log.warning("by=hidden: %d of %d texts are longer than the model's context of %d", long, len(texts), limit)
    rows = [ids[:limit] for ids in encoded]
    for text, ids in zip(texts, rows):
        if not ids:
            raise DataError(f"by=hidden: the text {text!r} has no tokens; leave it out")
    plain = plain_model(engine.model)
    trunk = plain.get_encoder() if engine.kind == "seq2seq" else plain.base_model
    lengths = [len(ids) for ids in rows]
    out: list[Any] = [None] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: lengths[i])
    with torch.inference_mode(), evaluating(engine.model), engine.autocast(), engine.lock:
        with inference_attention(engine.model):
            for batch in cut_by_tokens(order, lengths, batch_tokens):
                ids, mask = _padded([rows[i] for i in batch], engine.device)
                states = call(trunk, input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
                weights = mask[..., None].float()
                means = (states.float() * weights).sum(1) / weights.sum(1)
                for i, mean in zip(batch, means.cpu().numpy()):
                    out[i] = mean
    width = int(engine.model.config.get_text_config().hidden_size)
    return np.stack(out) if out else np.zeros((0, width), dtype=np.float32)


def _padded(rows: Sequence[Sequence[int]], device: Any) -> tuple[Any, Any]:
    """(ids, attention mask), int64 [B, T], padded on the right: so positions count from 0 in every family."""
    import torch

    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    return ids.to(device), mask.to(device)


def sentence_vectors(texts: Sequence[str], encoder: str) -> np.ndarray:
    """Vectors of a sentence-transformers model, float32 [N, H]. ConfigError where the package is not installed."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ConfigError(
            "by=sentence needs the package sentence-transformers (pip install sentence-transformers); "
            "by=hidden takes the local model's own states instead"
        ) from None
    return np.asarray(SentenceTransformer(encoder).encode(list(texts), convert_to_numpy=True), dtype=np.float32)
