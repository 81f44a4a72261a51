"""PPO with KL to the SFT model and a pretraining mix (InstructGPT sec. 3.5, PPO-ptx)."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from tutelage.core.rundir import RunDir
from tutelage.loss.policy import AdaptiveKL, FixedKL
from tutelage.train.ppo import UpdateConfig, improve
from tutelage.train.rl import RlConfig, reinforce


class PpoConfig(RlConfig, UpdateConfig):
    kl_coef: float = Field(0.05, ge=0)
    """Weight of the per-token KL to the SFT model in the reward."""
    kl_target: float | None = Field(None, gt=0)
    """Adaptive coefficient towards this KL (sum over tokens), if given."""


def run(config: PpoConfig, run: RunDir) -> dict[str, Any]:
    """Roll out, score, improve, `updates` times; the critic starts from the reward model, or from the SFT trunk where
    there is none. The summary has the last metrics and the text loss it cost."""
    kl = AdaptiveKL(config.kl_coef, config.kl_target, 10_000) if config.kl_target else FixedKL(config.kl_coef)
    return reinforce(config, run, improve, kl, critic=True)
