"""PPO's cast: policy, reference, critic and score, as separate models or as LoRA adapters on one frozen trunk."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tutelage.core.errors import ConfigError
from tutelage.model.adapters import Adapters, LoraSettings, unload
from tutelage.model.heads import RewardModel, ValueModel, create_reward_model
from tutelage.model.hub import find_model_dir, reading, save_model
from tutelage.train.drive import Stateful, console
from tutelage.train.optim import OptimConfig, Optimizers
from tutelage.train.ppo import Actors, Forward
from tutelage.train.rewards import Reward, as_function
from tutelage.train.scores import Score, by_function, by_logprob, by_model

ADAPTER_FILE = "adapter.safetensors"
"""A reward model's LoRA weights beside its merged model, so that PPO can hang them on the shared trunk."""


@dataclass
class Cast:
    """Everyone who acts in one PPO run, and the parts that move (what a checkpoint holds)."""

    policy: Any
    actors: Actors
    score: Score
    parts: dict[str, Stateful]
    adapters: Adapters | None = None

    def enter_policy(self) -> None:
        """Call before sampling: the engine runs the bare policy module."""
        if self.adapters:
            self.adapters.use("policy")

    def save(self, tokenizer: Any, folder: Path) -> None:
        """Write the policy as a plain model."""
        save_model(unload(self.policy, "policy") if self.adapters else self.policy, tokenizer, folder)


def _logits(model: Any) -> Forward:
    return lambda tokens, attention: model(input_ids=tokens, attention_mask=attention, use_cache=False).logits


def _reward_model(reward: str | Reward) -> RewardModel | None:
    return None if callable(reward) or reward == "logprob" or ":" in reward else RewardModel.load(reward)


def _score(reward: str | Reward, model: RewardModel | None, reference: Any, temperature: float) -> Score:
    if model is not None:
        return by_model(model.eval().requires_grad_(False), reference, temperature)
    if reward == "logprob":
        return by_logprob
    return by_function(as_function(reward))


def separate(
    policy: Any, tokenizer: Any, reward: str | Reward, optimizer: OptimConfig, temperature: float, seed: int
) -> Cast:
    """Four models: policy, a frozen copy as reference, a critic that starts as the reward model (or the SFT trunk)."""
    reference = copy.deepcopy(policy).eval().requires_grad_(False)
    model = _reward_model(reward)
    critic = ValueModel.from_reward(model or create_reward_model(policy, tokenizer, seed=seed))
    critic.requires_grad_(True).eval()
    policy.eval()  # dropout stays off in every forward, so old and new log-probs are of one function
    policy_optim, critic_optim = Optimizers(policy, optimizer), Optimizers(critic, optimizer)
    actors = Actors(_logits(policy), _logits(reference), critic, policy_optim, critic_optim)
    parts: dict[str, Any] = {
        "policy": policy, "critic": critic, "policy_optim": policy_optim, "critic_optim": critic_optim,
    }  # fmt: skip
    return Cast(policy, actors, _score(reward, model, reference, temperature), parts)


def shared(
    policy: Any,
    tokenizer: Any,
    reward: str | Reward,
    optimizer: OptimConfig,
    temperature: float,
    seed: int,
    lora: LoraSettings,
) -> Cast:
    """One frozen trunk: policy and critic are adapters, the reference is the trunk without one (the SFT model).

    A reward model that was trained with method=lora on the same SFT model is a third, frozen adapter.
    """
    model = _reward_model(reward)
    saved = _saved_adapter(reward) if model is not None else None
    head_of = model or create_reward_model(policy, tokenizer, seed=seed)
    names = ["policy", "critic"] + (["reward"] if saved else [])
    trunk = policy.base_model
    adapters = Adapters(trunk, names, lora, seed)
    policy.requires_grad_(False)
    policy.eval()
    # a critic's trunk starts as the reward's: its adapter where there is one, the SFT trunk elsewhere
    if saved:
        for name in ("critic", "reward"):
            adapters.load(name, saved)
    critic = ValueModel(trunk, ValueModel.from_reward(head_of).head)
    adapters.use("policy")
    policy_optim = Optimizers(policy, optimizer)
    adapters.use("critic")
    critic.head.requires_grad_(True)
    critic_optim = Optimizers(critic, optimizer)

    def forward(name: str | None, model: Any) -> Forward:
        def run(tokens: Tensor, attention: Tensor) -> Tensor:
            adapters.use(name)
            return model(tokens, attention)

        return run

    logits = _logits(policy)
    forwards = (forward("policy", logits), forward(None, logits), forward("critic", critic))
    actors = Actors(*forwards, policy_optim, critic_optim)
    score = _score(reward, model, policy, temperature)
    if saved:
        assert model is not None
        score = _on_trunk(model, trunk, adapters, policy, temperature)
    parts: dict[str, Any] = {
        "policy": adapters.view("policy"), "critic": adapters.view("critic"), "head": critic.head,
        "policy_optim": policy_optim, "critic_optim": critic_optim,
    }  # fmt: skip
    return Cast(policy, actors, score, parts, adapters)


def _saved_adapter(reward: str | Reward) -> dict[str, Tensor] | None:
    folder = None if callable(reward) else find_model_dir(reward)
    file = folder / ADAPTER_FILE if folder else None
    if file is not None and file.is_file():
        with reading(str(reward), folder, "the adapter"):
            return load_file(str(file))
    console.print("the reward model was not trained with method=lora: it keeps a trunk of its own")
    return None


def _on_trunk(model: RewardModel, trunk: nn.Module, adapters: Adapters, policy: Any, temperature: float) -> Score:
    """The reward model with its trunk given back: scored by the shared trunk under the reward adapter."""
    if temperature != 1.0 and model.features is not None:
        raise ConfigError("method=lora with a feature reward model needs temperature=1")
    model.model.__dict__["_modules"][model.model.base_model_prefix] = trunk
    scored = by_model(model.eval(), policy, temperature)
    model.model.score.requires_grad_(False)

    @torch.no_grad()
    def score(episodes: Any, ref: Tensor) -> Tensor:
        adapters.use("reward")
        return scored(episodes, ref)

    return score
