"""Objectives: (model, batch) -> (loss summed over its units, metrics with "count")."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.core.distributed import all_sum, world_size
from tutelage.loss.lm import (
    chunked_cross_entropy,
    chunked_nats,
    cross_entropy_sum,
    label_cross_entropy_sum,
    token_logprobs,
)
from tutelage.loss.preference import kwise_loss
from tutelage.model.attention import using
from tutelage.model.forward import plain_model, predicting_at
from tutelage.model.lm_head import LMHead, states
from tutelage.model.plans import packed
from tutelage.train.loop import Objective


def causal(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Next-token cross-entropy, summed over the labels that are not -100 (pretraining and SFT).

    A batch with "lengths" holds documents one behind another in one row: none attends to another.
    """
    with _plan(model, batch):
        logits = model(**_inputs(batch), use_cache=False).logits
    # virtual tokens of a learned prompt stand in front
    total, count = cross_entropy_sum(logits[:, -batch["labels"].shape[1] :], batch["labels"])
    return total, {"count": int(count), "tokens": _tokens(batch)}


def _tokens(batch: Mapping[str, Any]) -> int:
    """Tokens of the batch without padding."""
    return int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel()


def _inputs(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    return {k: batch[k] for k in ("input_ids", "attention_mask", "position_ids") if k in batch}


def _plan(model: nn.Module, batch: Mapping[str, Any]) -> Any:
    """A context within which the batch's documents do not attend to one another."""
    if "lengths" not in batch:
        return nullcontext()
    return using(model, packed(batch["lengths"].tolist(), batch["input_ids"].device))


class Chunked:
    """`causal` of the model of `head`, with the logits of a few positions alive at a time, and none where no label
    counts."""

    def __init__(self, head: LMHead) -> None:
        self.head = head

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        with _plan(model, batch):
            hidden = states(model, **_inputs(batch))
        head = self.head
        total, count = chunked_cross_entropy(hidden, head, head.parameters, batch["labels"], head.vocabulary)
        return total, {"count": int(count), "tokens": _tokens(batch)}


@torch.no_grad()
def answer_nats(model: nn.Module, batch: Mapping[str, Any], head: LMHead | None) -> tuple[Tensor, Tensor]:
    """(nats [N] of each label that is not -100, these labels [N]); with `head` only a chunk's logits at once."""
    inputs, labels = _inputs(batch), batch["labels"]
    if head is not None:
        return chunked_nats(states(model, **inputs), head, labels, head.vocabulary)
    logits = model(**inputs, use_cache=False).logits[:, -labels.shape[1] :]
    counted = labels[:, 1:] != -100
    return -token_logprobs(logits, batch["input_ids"])[counted], labels[:, 1:][counted]


def masked(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Cross-entropy at the masked places, summed; with "next_sentence_label" also the mean of the next-sentence loss
    per row, in units of the first (their means add up, as in BERT)."""
    given = {k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids") if k in batch}
    labels, chosen = batch["labels"], batch["labels"] != -100
    # the head is a third of a base model's work: there only the places that are predicted
    narrow = plain_model(model).config.model_type in ("bert", "roberta")
    with predicting_at(model, chosen) if narrow else nullcontext():
        out = model(**given)
    pairs = "next_sentence_label" in batch
    logits = out.prediction_logits if pairs else out.logits
    total, count = label_cross_entropy_sum(logits, labels[chosen][None] if narrow else labels)
    metrics = {"count": int(count), "tokens": batch["input_ids"].numel()}
    if pairs:
        told, right = out.seq_relationship_logits, batch["next_sentence_label"]
        rows, number = label_cross_entropy_sum(told, right)
        metrics["masked_loss"] = float(total.detach()) / max(1, int(count))  # type: ignore[assignment]
        total = total + rows * (count / number)
        metrics["next_sentence"] = float((told.argmax(-1) == right).float().mean())  # type: ignore[assignment]
    return total, metrics


def seq2seq(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Cross-entropy of the decoder's targets, summed over the labels that are not -100."""
    given = {k: batch[k] for k in ("input_ids", "attention_mask", "decoder_input_ids")}
    total, count = label_cross_entropy_sum(model(**given, use_cache=False).logits, batch["labels"])
    return total, {"count": int(count), "tokens": batch["input_ids"].numel() + batch["labels"].numel()}


class WithText:
    """An objective (causal by default) and `coef` times the mean loss of the text under "ptx" (InstructGPT C.4: the
    model that PPO starts from saw pretraining text beside its demonstrations, and so keeps its language)."""

    def __init__(self, coef: float, main: Objective = causal) -> None:
        self.coef, self.main = coef, main

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        total, metrics = self.main(model, batch)
        text, count = causal(model, batch["ptx"])
        units, texts, shown = metrics["count"], count["count"], None
        if world_size() > 1:  # the ranks' parts of the one mean
            units, texts, nats = all_sum([units, texts, float(text.detach())])
            shown = nats / max(1, texts)
        mean = text / max(1, texts)
        # in units of the main loss, so that the step's division by its count leaves coef * mean
        total = total + self.coef * units * mean
        tokens = metrics["tokens"] + count["tokens"]
        return total, {**metrics, "tokens": tokens, "text_loss": float(mean.detach()) if shown is None else shown}


def kwise(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """K-wise reward loss (InstructGPT eq. 1): every response once through the model, all pairs of a prompt together.

    batch: as train.reward_data.collate_rankings makes it.
    """
    parts = batch["parts"]
    known = ("input_ids", "attention_mask", "features", "position_ids", "ends")
    scores = [model(**{key: part[key] for key in known if key in part}) for part in parts]
    flat = torch.cat([score.float() for score in scores])
    scores_PK = flat.new_zeros(batch["ranks"].numel()).index_put((batch["places"],), flat).view_as(batch["ranks"])
    loss, metrics = kwise_loss(scores_PK, batch["ranks"], batch["mask"], p_better=batch.get("p_better"))
    ranked = int(metrics["prompts"])  # prompts whose responses are all tied carry no pair and no weight
    return loss * ranked, {
        "accuracy": float(metrics["accuracy"]),
        "count": ranked,
        "tokens": sum(part["input_ids"].numel() for part in parts),
    }
