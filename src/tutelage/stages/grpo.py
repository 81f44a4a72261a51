"""GRPO, Dr. GRPO and RLOO: groups of answers to a prompt as each other's baseline, on PPO's rollouts and rewards."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from tutelage.core.rundir import RunDir
from tutelage.loss.policy import AdaptiveKL, FixedKL
from tutelage.train.grpo import GroupConfig, improve_groups
from tutelage.train.rl import RlConfig, reinforce


class GrpoConfig(RlConfig, GroupConfig):
    kl_coef: float = Field(0.04, ge=0)
    """Weight of the KL to the SFT model, in the loss or in the score (kl_in)."""
    kl_target: float | None = Field(None, gt=0)
    """Adaptive coefficient towards this KL (sum over tokens), if given."""

    @model_validator(mode="after")
    def _whole_groups(self) -> GrpoConfig:
        if self.batch_size % self.group_size:
            raise ValueError(
                f"batch_size={self.batch_size} is no multiple of group_size={self.group_size}: groups are whole"
            )
        return self


def run(config: GrpoConfig, run: RunDir) -> dict[str, Any]:
    """Roll out groups, score, improve, `updates` times; the summary has the last metrics and the text loss it cost."""
    kl = AdaptiveKL(config.kl_coef, config.kl_target, 10_000) if config.kl_target else FixedKL(config.kl_coef)
    leave_open = config.leaves_open()
    return reinforce(config, run, improve_groups, kl, group=config.group_size, leave_open=leave_open)
