"""DPO, IPO and KTO on preferences, and online DPO on the policy's own answers as a reward orders them."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from tutelage.core.rundir import RunDir
from tutelage.loss.policy import FixedKL
from tutelage.train.optim import OptimConfig
from tutelage.train.pairs import PairConfig, improve_pairs
from tutelage.train.parallel import require_one
from tutelage.train.prefer import prefer
from tutelage.train.rewards import RewardSpecs
from tutelage.train.rl import RlConfig, reinforce

GIVEN_ONLY = {"held_out", "held_rows", "max_length", "eval_every", "eval_prompts"}
ONLINE_ONLY = {"prompts", "group_size", "epochs", "minibatches", "missing_eos_penalty", "sample_every"}
KTO_ONLY = {"desirable_weight", "undesirable_weight"}


class DpoConfig(RlConfig, PairConfig):
    data: str
    """Preferences: a file or folder of pairs or rankings (kto: or rows with a label), or the run directory of `rank`.
    online: prompts, or the embedded world."""
    reward: RewardSpecs | None = None  # type: ignore[assignment]
    """online: what orders the answers (see ppo). Else only logged, as the proxy of the sampled answers."""
    online: bool = False
    """Answers are sampled from the policy as it is now, the best and the worst by the reward are the pair."""
    group_size: int = Field(4, ge=2)
    """online: answers per prompt."""
    updates: int = Field(150, ge=1)
    """Optimiser steps; online: rollouts."""
    batch_size: int = Field(64, ge=1)
    """Prompts per step (kto: answers); online: answers per rollout."""
    desirable_weight: float = Field(1.0, gt=0)
    """kto: weight of answers with a thumb up; where both are unlike in number, choose the two weights so that
    (weight * number up) / (weight * number down) is 1 to 4/3 (the paper, eq. 9)."""
    undesirable_weight: float = Field(1.0, gt=0)
    """kto: weight of answers with a thumb down."""
    held_out: str | None = None
    """What is measured on: another file or folder. Without it, a tenth of the questions of a file or folder, chosen by
    a hash of the question."""
    held_rows: int = Field(1000, ge=1)
    """At most this many held-out rows, spread evenly over them all."""
    max_length: int = Field(256, ge=8)
    """Tokens of prompt and response; of longer ones the prompt loses its beginning."""
    eval_every: int = Field(50, ge=0)
    """Steps between measurements; there is always one at the end."""
    eval_prompts: int = Field(128, ge=0)
    """Held-out prompts answered at each, for the KL to the SFT model, the reward and gold; 0: none."""
    optimizer: OptimConfig = OptimConfig(name="adamw", lr=3e-4, decay=0.5, eps=1e-5, warmup=0.05)

    @model_validator(mode="after")
    def _keys_of_the_mode(self) -> DpoConfig:
        wrong = sorted(self.model_fields_set & (GIVEN_ONLY if self.online else ONLINE_ONLY))
        if wrong:
            raise ValueError(f"{wrong[0]}= has no meaning with online={str(self.online).lower()}; leave it out")
        if self.online and self.reward is None:
            raise ValueError("no reward=; online=true needs one to order the answers by")
        if self.online and self.loss == "kto":
            raise ValueError("loss='kto' has no pairs; with online=true expected dpo or ipo")
        if self.online and self.batch_size % self.group_size:
            raise ValueError(f"batch_size={self.batch_size} is no multiple of group_size={self.group_size}")
        if self.loss != "kto" and (odd := sorted(self.model_fields_set & KTO_ONLY)):
            raise ValueError(f"{odd[0]}= belongs to loss='kto'")
        return self


def run(config: DpoConfig, run: RunDir) -> dict[str, Any]:
    """Train on the preferences, or on the policy's own answers."""
    if config.online:
        require_one("online=true")  # how many pairs a rank's answers give, and so its steps, would differ
        return reinforce(config, run, improve_pairs, FixedKL(config.beta), group=config.group_size)
    return prefer(config, run)
