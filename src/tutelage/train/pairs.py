"""Online DPO: of several answers that the policy just gave, the best and the worst by the reward are a pair.

Guo et al. 2024 ("Direct language model alignment from online AI feedback") sample two answers; with more, the best and
the worst are taken (Xiong et al. 2024; RLHFlow). Shapes as in train/update.py.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from tutelage.loss.policy import kl_estimate
from tutelage.loss.preference import dpo_loss, ipo_loss
from tutelage.train.update import (
    Actors,
    Judged,
    PassConfig,
    Ptx,
    Rollout,
    current_logprobs,
    facts,
    passes,
    pretraining_gradient,
)


class PairConfig(PassConfig):
    """The loss of DPO and its relatives."""

    loss: Literal["dpo", "ipo", "kto"] = "dpo"
    """dpo (Rafailov et al. 2023) | ipo (Azar et al. 2023) | kto (Ethayarajh et al. 2024: answers with a thumb)"""
    beta: float = Field(0.1, gt=0)
    """How closely the policy is held to the reference. ipo: the log ratios' gap is drawn to 1 / (2 beta) nats."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of preferences that are assumed to be the wrong way round (cDPO); soft labels of the rows count as well."""
    average: bool = False
    """ipo: log-probs per token instead of summed over the answer, as TRL has it."""


def best_and_worst(scores_PK: Tensor) -> tuple[Tensor, Tensor]:
    """Row numbers [P'] in the flat [P*K] of the best and the worst answer of each group that is not all alike."""
    apart = (scores_PK.amax(1) > scores_PK.amin(1)).nonzero().squeeze(1)
    start = apart * scores_PK.shape[1]
    return start + scores_PK[apart].argmax(1), start + scores_PK[apart].argmin(1)


def improve_pairs(
    actors: Actors,
    rollout: Rollout,
    scores: Tensor,
    judged: Judged,
    config: PairConfig,
    *,
    beta: float,
    done: float,
    ptx: Ptx | None = None,
    precision: str = "fp32",
) -> dict[str, float]:
    """DPO steps on the pairs of one rollout of groups, as `ppo.improve`; `beta` is the loss's. A rollout without a pair
    (every group scores alike) moves nothing."""
    mask = rollout.mask
    scores = scores - config.missing_eos_penalty * (1 - rollout.ended)
    groups = scores.view(-1, rollout.group)
    pair = best_and_worst(groups)
    ref = (judged.ref * mask).sum(1)
    lengths = mask.sum(1).clamp(min=1)

    def minibatch(s: slice) -> tuple[dict[str, Any], float]:
        # both answers of a pair go through the model together: chosen ones first
        rows = torch.cat([pair[0][s], pair[1][s]])
        logp = (current_logprobs(actors, rollout, rows, config, precision) * mask[rows]).sum(1)
        each = [logp, ref[rows]]
        if config.average:
            each = [x / lengths[rows] for x in each]
        (chosen, rejected), (ref_chosen, ref_rejected) = (x.chunk(2) for x in each)
        function = ipo_loss if config.loss == "ipo" else dpo_loss
        loss, metrics = function(chosen, rejected, ref_chosen, ref_rejected, beta, config.label_smoothing)
        loss.backward()
        out = {"pair_loss": loss.detach(), **metrics}
        return out | pretraining_gradient(actors, config, ptx, precision), float(len(rows) // 2)

    made = passes(actors, len(pair[0]), config, done, minibatch)
    kl = kl_estimate(judged.old, judged.ref) * mask
    return {
        **facts(rollout, judged, kl, scores, made),
        "flat_groups": float((groups.amax(1) == groups.amin(1)).float().mean()),
        "score_gap": float((groups.amax(1) - groups.amin(1)).mean()),
    }
