"""How far a policy has gone from its reference and what its answers are worth, measured on prompts: the axis on which
methods are compared, for those (DPO) that sample nothing while they train."""

from __future__ import annotations

from typing import Any

from tutelage.core.stats import mean_interval
from tutelage.engine import LocalEngine
from tutelage.loss.lm import masked_mean
from tutelage.loss.policy import kl_estimate
from tutelage.train.rollouts import sample_episodes
from tutelage.train.scores import Rewards, Score
from tutelage.train.update import Actors, PassConfig, judge


def probe(
    engine: LocalEngine,
    rows: list[dict[str, Any]],
    actors: Actors,
    score: Rewards | None,
    gold: Score | None,
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    batch: int = 128,
    precision: str = "fp32",
) -> dict[str, float]:
    """Sample an answer to each row (as rollouts.encode_prompts makes them), the same draws at every call.

    Returns "kl" (k1, summed over an answer's tokens, nats), "proxy", "gold", "gold_low" and "gold_high" (95%),
    "entropy", "length", "eos_rate"; the scores only where there is something to score with.
    """
    config = PassConfig.model_validate({"minibatches": 1, "temperature": temperature})
    sums: dict[str, float] = {}
    golds: list[float] = []
    count = 0
    for number, start in enumerate(range(0, len(rows), batch)):
        part = rows[start : start + batch]
        episodes = sample_episodes(
            engine, part, batch_size=len(part), minibatches=1, max_tokens=max_tokens, temperature=temperature,
            seed=seed, step=number,
        )  # fmt: skip
        rollout = episodes.rollout
        judged = judge(actors, rollout, config, precision)
        found = {
            "kl": float((kl_estimate(judged.old, judged.ref) * rollout.mask).sum(1).mean()),
            "entropy": float(masked_mean(judged.entropy, rollout.mask)),
            "length": float(rollout.mask.sum(1).mean()),
            "eos_rate": float(rollout.ended.mean()),
        }
        if score is not None:
            scores, each = score(episodes, judged.ref)
            found |= {"proxy": float(scores.mean()), **each}
        if gold is not None:
            golds += gold(episodes, judged.ref).tolist()
        for key, value in found.items():
            sums[key] = sums.get(key, 0.0) + value * len(part)
        count += len(part)
    out = {key: value / count for key, value in sums.items()}
    if golds:
        out["gold"], out["gold_low"], out["gold_high"] = mean_interval(golds)
    return out
