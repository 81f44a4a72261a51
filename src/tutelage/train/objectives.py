"""Objectives: (model, batch) -> (loss summed over its units, metrics with "count")."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.loss.lm import cross_entropy_sum, label_cross_entropy_sum
from tutelage.loss.preference import kwise_loss
from tutelage.model.attention import using
from tutelage.model.forward import plain_model, predicting_at
from tutelage.model.plans import packed
from tutelage.train.loop import Objective


def causal(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Next-token cross-entropy, summed over the labels that are not -100 (pretraining and SFT).

    A batch with "lengths" holds documents one behind another in one row: none attends to another.
    """
    extra = {k: batch[k] for k in ("attention_mask", "position_ids") if k in batch}
    plan: Any = nullcontext()
    if "lengths" in batch:
        plan = using(model, packed(batch["lengths"].tolist(), batch["input_ids"].device))
    with plan:
        logits = model(input_ids=batch["input_ids"], use_cache=False, **extra).logits
    total, count = cross_entropy_sum(logits, batch["labels"])
    return total, {"count": int(count), "tokens": batch["input_ids"].numel()}


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
        mean = text / max(1, count["count"])
        # in units of the main loss, so that the step's division by its count leaves coef * mean
        total = total + self.coef * metrics["count"] * mean
        return total, {**metrics, "tokens": metrics["tokens"] + count["tokens"], "text_loss": float(mean.detach())}


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
