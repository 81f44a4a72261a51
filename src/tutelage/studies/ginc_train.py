"""Training a small transformer on GINC documents with the project's own loop, and its accuracy on prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from tutelage.core.progress import Progress
from tutelage.core.rundir import RunDir
from tutelage.core.runtime import stream_seed
from tutelage.model.hub import create_model, parameter_count, save_model
from tutelage.studies.ginc_world import Ints, Prompts, World, sample_documents, words_of
from tutelage.studies.parts import word_tokenizer
from tutelage.text.loader import BlockLoader
from tutelage.text.shards import TokenShards, write_shards
from tutelage.train.evaluate import text_loss
from tutelage.train.loop import train
from tutelage.train.objectives import causal
from tutelage.train.optim import OptimConfig, Optimizers

BLOCKS = 10
"""Blocks of a document (10,240 tokens in blocks of 1,024 in the paper)."""


def pretrain(
    world: World,
    run: RunDir,
    *,
    model: str,
    steps: int,
    batch_size: int,
    block_size: int,
    optimizer: OptimConfig,
    precision: str,
    save_every: int,
    seed: int,
) -> dict[str, Any]:
    """Train a preset from scratch on documents of the world's HMMs, every token read once; writes run.path/model.

    Documents are `BLOCKS` blocks long, so no block runs across two of them. Returns the summary: losses in nats a
    token, tokens, seconds of training.
    """
    tokenizer = word_tokenizer(words_of(world.vocabulary))
    count = -(-steps * batch_size // BLOCKS)
    for name, documents, stream in (("train", count, "documents"), ("validation", 10, "held-out documents")):
        if not (run.path / name).is_dir():
            tokens, _ = sample_documents(world, documents, BLOCKS * block_size, stream_seed(seed, stream))
            write_shards(run.path / name, (row.tolist() for row in tokens), tokenizer)
    loader = BlockLoader(TokenShards(run.path / "train", tokenizer), batch_size, block_size, seed)
    held = TokenShards(run.path / "validation", tokenizer)
    net = create_model(model, tokenizer, block_size, seed)
    last = train(
        net, causal, loader, Optimizers(net, optimizer), run, steps=steps, precision=precision,
        evaluate=lambda: {"val_loss": text_loss(net, held, block_size)}, eval_every=max(1, steps // 10),
        save_every=save_every, log_every=max(1, steps // 50),
    )  # fmt: skip
    save_model(net, tokenizer, run.path / "model")
    return {
        "loss": last["loss"], "val_loss": last["val_loss"], "tokens": steps * batch_size * block_size,
        "training_seconds": last["seconds"], "parameters": parameter_count(net),
    }  # fmt: skip


@torch.inference_mode()
def model_answers(
    model: nn.Module, prompts: Prompts, counts: Sequence[int], name: str = "model", batch: int = 25
) -> Ints:
    """[P, counts] the model's greedy next token after each number of whole examples and the next one's input.

    One forward a prompt: a prompt with fewer examples is the beginning of the longest (see `Prompts`).
    """
    model.eval()
    positions = [prompts.query(n) for n in counts]
    tokens = torch.from_numpy(prompts.tokens[:, : max(positions) + 1])
    found = []
    with Progress(name, "prompts", len(tokens)) as progress:
        for at in range(0, len(tokens), batch):
            logits = model(input_ids=tokens[at : at + batch], use_cache=False).logits
            found.append(logits[:, positions].argmax(-1).numpy())
            progress.add(len(found[-1]))
    return np.concatenate(found)
