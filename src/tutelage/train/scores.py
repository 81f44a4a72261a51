"""What PPO maximises: a reward model, a function, or the reference's own log-prob, behind one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tutelage.model.heads import RewardModel, features_from_logprobs, logprob_features
from tutelage.train.rewards import Reward, judge_rows
from tutelage.train.rollouts import Episodes

Score = Callable[[Episodes, Tensor], Tensor]
"""(episodes, reference log-probs [B, T-1]) -> scores [B]."""


def by_logprob(episodes: Episodes, ref: Tensor) -> Tensor:
    """The response's log-prob under the reference: a reward without any label, the control of every other reward.

    Its optimum under KL is the reference at a lower temperature, so it shows what sharpening alone would give.
    """
    return (ref * episodes.rollout.mask).sum(1)


def by_function(function: Reward) -> Score:
    """A reward function of TRL's signature; the rows' other columns reach it."""

    def score(episodes: Episodes, ref: Tensor) -> Tensor:
        return torch.tensor(judge_rows(function, episodes.rows, episodes.texts))

    return score


def by_model(model: RewardModel, reference: Any, temperature: float, batch: int = 64) -> Score:
    """A frozen reward model; its log-prob features reuse the reference log-probs where they are at temperature 1."""

    @torch.no_grad()
    def score(episodes: Episodes, ref: Tensor) -> Tensor:
        rollout, out = episodes.rollout, []
        for i in range(0, rollout.tokens.shape[0], batch):
            s = slice(i, i + batch)
            tokens, attention, mask = rollout.tokens[s], rollout.attention[s], rollout.mask[s]
            features = None
            if model.features is not None and temperature == 1.0:
                features = features_from_logprobs(ref[s], mask)
            elif model.features is not None:
                response = torch.cat([torch.zeros_like(mask[:, :1]), mask], 1).long()
                features = logprob_features(reference, tokens, attention, response)
            out.append(model(tokens, attention, features=features).float())
        return torch.cat(out)

    return score
