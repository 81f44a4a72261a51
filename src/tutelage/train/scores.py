"""What the methods maximise: reward models, functions, the reference's own log-prob, one or several, as one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tutelage.core.errors import ConfigError
from tutelage.model.heads import RewardModel, features_from_logprobs, logprob_features
from tutelage.train.rewards import One, Reward, Several, as_function, is_model, judge_rows, name_of
from tutelage.train.rollouts import Episodes

Score = Callable[[Episodes, Tensor], Tensor]
"""(episodes, reference log-probs [B, T-1]) -> scores [B]."""
Ensemble = Literal["mean", "min", "mean-std"]


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


@dataclass
class Part:
    """One term of the total: its name in the log, its weight, and its score or, of an ensemble, its members'."""

    name: str
    weight: float
    members: list[Score]


class Rewards:
    """Several rewards as one. Calling it gives (scores [B], metrics).

    Metrics are empty for a single reward; else "reward/NAME", each part's mean before its weight, and for an ensemble
    "disagreement/NAME", the mean over answers of its members' standard deviation: it grows where the policy leaves what
    the reward models were trained on (Coste et al. 2023).
    """

    def __init__(self, parts: Sequence[Part], ensemble: Ensemble = "mean", k: float = 1.0) -> None:
        self.parts, self.ensemble, self.k = list(parts), ensemble, k

    def __call__(self, episodes: Episodes, ref: Tensor) -> tuple[Tensor, dict[str, float]]:
        total: Tensor | None = None
        metrics: dict[str, float] = {}
        for part in self.parts:
            found = torch.stack([member(episodes, ref).float() for member in part.members])
            scores = found[0]
            if len(found) > 1:
                scores, spread = combined(found, self.ensemble, self.k)
                metrics[f"disagreement/{part.name}"] = float(spread.mean())
            if len(self.parts) > 1:
                metrics[f"reward/{part.name}"] = float(scores.mean())
            scores = part.weight * scores
            total = scores if total is None else total + scores
        assert total is not None
        return total, metrics


def combined(scores_MB: Tensor, how: Ensemble, k: float = 1.0) -> tuple[Tensor, Tensor]:
    """(one score [B], standard deviation [B]) of M members' scores: their mean, the least (worst-case optimisation), or
    mean - k * std (Coste et al. 2023, sec. 3, there with the variance). The std is the sample's, M - 1 below."""
    spread = scores_MB.std(0)
    if how == "mean":
        return scores_MB.mean(0), spread
    if how == "min":
        return scores_MB.amin(0), spread
    if how == "mean-std":
        return scores_MB.mean(0) - k * spread, spread
    raise ValueError(f"unknown ensemble {how!r}; one of mean, min, mean-std")


def build_rewards(
    reward: Several,
    weights: Sequence[float] | None,
    one: Callable[[One], Score],
    ensemble: Ensemble = "mean",
    k: float = 1.0,
) -> Rewards:
    """The total of a specification; `one` makes a single reward's score. ConfigError where the weights or an ensemble
    do not fit it."""
    given = list(reward) if isinstance(reward, list | tuple) else [reward]
    if not given:
        raise ConfigError("reward=[]: expected at least one reward")
    if weights is not None and len(weights) != len(given):
        raise ConfigError(f"reward_weights has {len(weights)} numbers for {len(given)} rewards; expected one for each")
    parts: list[Part] = []
    for part, weight in zip(given, weights or [1.0] * len(given)):
        members = list(part) if isinstance(part, list | tuple) else [part]
        if isinstance(part, list | tuple) and not (len(members) > 1 and all(map(is_model, members))):
            raise ConfigError(f"reward: an inner list is an ensemble of at least 2 reward models, got {part}")
        name = "ensemble" if len(members) > 1 else name_of(members[0])
        taken = [p.name for p in parts]
        name = name if name not in taken else f"{name}-{len(parts) + 1}"
        parts.append(Part(name, float(weight), [one(member) for member in members]))
    return Rewards(parts, ensemble, k)


def plain_score(reward: One, model: RewardModel | None, reference: Any, temperature: float) -> Score:
    """A single reward's score; `model` is the loaded reward model where it is one."""
    if model is not None:
        return by_model(model.eval().requires_grad_(False), reference, temperature)
    if reward == "logprob":
        return by_logprob
    return by_function(as_function(reward))
