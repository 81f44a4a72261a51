"""The cast of RL: policy, reference, score and (PPO) critic, as separate models or LoRA adapters on one trunk."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tutelage.core.errors import ConfigError
from tutelage.model.adapters import Adapters, LoraSettings, unload
from tutelage.model.heads import RewardModel, ValueModel, create_reward_model
from tutelage.model.hub import find_model_dir, reading, save_model
from tutelage.train.compiled import Compiled
from tutelage.train.drive import Stateful, console
from tutelage.train.optim import OptimConfig, Optimizers
from tutelage.train.parallel import Parallel, Sharded, ShardedState, shard, sharded
from tutelage.train.rewards import One, Several, each_reward, is_model
from tutelage.train.scores import Ensemble, Rewards, Score, build_rewards, by_model, plain_score
from tutelage.train.shared import Logits, compile_all, takes_groups
from tutelage.train.update import Actors, Forward

ADAPTER_FILE = "adapter.safetensors"
"""A reward model's LoRA weights beside its merged model, so that PPO can hang them on the shared trunk."""


@dataclass(frozen=True)
class RewardSetting:
    """What is maximised: one reward or several, their weights, and how an ensemble's members are combined."""

    reward: Several
    weights: list[float] | None = None
    ensemble: Ensemble = "mean"
    k: float = 1.0

    def build(self, known: dict[str, RewardModel], reference: Any, temperature: float, on_trunk: Any = None) -> Rewards:
        """The total; `known` are the reward models loaded already, `on_trunk` the score of a single one whose trunk is
        shared."""

        def one(reward: One) -> Score:
            if on_trunk is not None:
                return on_trunk
            model = None
            if isinstance(reward, str) and is_model(reward):
                model = known.get(reward) or RewardModel.load(reward)
            return plain_score(reward, model, reference, temperature)

        return build_rewards(self.reward, self.weights, one, self.ensemble, self.k)

    def first_model(self) -> dict[str, RewardModel]:
        """The first reward model by its path (a critic starts as it), or nothing."""
        path = next((r for r in each_reward(self.reward) if isinstance(r, str) and is_model(r)), None)
        return {path: RewardModel.load(path)} if path is not None else {}


@dataclass
class Cast:
    """Everyone who acts in one RL run, and the parts that move (what a checkpoint holds)."""

    policy: Any
    actors: Actors
    score: Rewards
    parts: dict[str, Stateful]
    adapters: Adapters | None = None
    build: Callable[[RewardSetting], Rewards] | None = None
    """Further rewards on the same episodes (those that are watched and not maximised)."""
    shards: Sharded | None = None
    """The policy as it is trained, where that is not `policy` itself."""

    def spread(self, parallel: Parallel) -> None:
        """Share the training out among the ranks; nothing without torchrun. Reference and rewards stay whole."""
        self.shards = sharded(self.policy, None, parallel)
        if self.shards is None:
            return
        actors, parts = self.actors, self.parts
        actors.policy = Logits(self.shards.model)
        parts["policy"] = self.shards
        actors.policy_optim = parts["policy_optim"] = self.shards.optimizers(actors.policy_optim)
        if actors.critic is not None:
            critic = parts["critic"]
            assert isinstance(critic, nn.Module)
            parts["critic"] = ShardedState(shard(critic))
            like = actors.critic_optim
            actors.critic_optim = parts["critic_optim"] = Optimizers(critic, like.config, like.head_lr)

    def enter_policy(self) -> None:
        """Call before sampling or saving: the engine runs the bare policy module, with the newest weights."""
        if self.shards:
            self.shards.refresh()
        if self.adapters:
            self.adapters.use("policy")

    def save(self, tokenizer: Any, folder: Path) -> None:
        """Write the policy as a plain model."""
        save_model(unload(self.policy, "policy") if self.adapters else self.policy, tokenizer, folder)


def separate(
    policy: Any,
    tokenizer: Any,
    reward: RewardSetting,
    optimizer: OptimConfig,
    temperature: float,
    seed: int,
    critic: bool = True,
    group: int = 1,
    compile_in: str | None = None,
) -> Cast:
    """Models apart: policy, a frozen copy as reference, and with `critic` one that starts as the (first) reward model,
    or as the SFT trunk where there is none. compile_in: the precision in which their forwards are compiled, if so."""
    reference = copy.deepcopy(policy).eval().requires_grad_(False)
    known = reward.first_model()
    policy.eval()  # dropout stays off in every forward, so old and new log-probs are of one function
    mine, theirs = Logits(policy), Logits(reference)
    actors = Actors(mine, theirs, share_prompts=group > 1 and takes_groups(mine))
    is_compiled = compile_in is not None and compile_all([mine, theirs], actors.share_prompts, compile_in)
    parts: dict[str, Any] = {"policy": policy}
    if critic:
        start = next(iter(known.values()), None) or create_reward_model(policy, tokenizer, seed=seed)
        value = parts["critic"] = ValueModel.from_reward(start).requires_grad_(True).eval()
        actors.critic = Compiled(value) if is_compiled else value
    actors.policy_optim = parts["policy_optim"] = Optimizers(policy, optimizer)
    if critic:
        actors.critic_optim = parts["critic_optim"] = Optimizers(parts["critic"], optimizer)
    build = partial(RewardSetting.build, known={}, reference=reference, temperature=temperature)
    return Cast(policy, actors, reward.build(known, reference, temperature), parts, build=build)


def shared(
    policy: Any,
    tokenizer: Any,
    reward: RewardSetting,
    optimizer: OptimConfig,
    temperature: float,
    seed: int,
    lora: LoraSettings,
    critic: bool = True,
    group: int = 1,
) -> Cast:
    """One frozen trunk: policy and critic are adapters, the reference is the trunk without one (the SFT model).

    A single reward model that was trained with method=lora on the same SFT model is a third, frozen adapter; several
    keep trunks of their own.
    """
    known = reward.first_model()
    model = next(iter(known.values()), None)
    saved = _saved_adapter(reward.reward) if model is not None else None
    head_of = (model or create_reward_model(policy, tokenizer, seed=seed)) if critic else None
    names = ["policy"] + (["critic"] if critic else []) + (["reward"] if saved else [])
    trunk = policy.base_model
    adapters = Adapters(trunk, names, lora, seed)
    policy.requires_grad_(False)
    policy.eval()
    # a critic's trunk starts as the reward's: its adapter where there is one, the SFT trunk elsewhere
    if saved:
        for name in names[1:]:
            adapters.load(name, saved)

    def forward(name: str | None, model: Any) -> Forward:
        def run(tokens: Tensor, attention: Tensor) -> Tensor:
            adapters.use(name)
            return model(tokens, attention)

        return run

    mine, bare = Logits(policy, lambda: adapters.use("policy")), Logits(policy, lambda: adapters.use(None))
    actors = Actors(mine, bare, share_prompts=group > 1 and takes_groups(mine))
    parts: dict[str, Any] = {"policy": adapters.view("policy")}
    value = ValueModel(trunk, ValueModel.from_reward(head_of).head) if head_of is not None else None
    adapters.use("policy")
    policy_optim = Optimizers(policy, optimizer)
    if value is not None:
        actors.critic = forward("critic", value)
        parts |= {"critic": adapters.view("critic"), "head": value.head}
        adapters.use("critic")
        value.head.requires_grad_(True)
        critic_optim = Optimizers(value, optimizer)
        actors.critic_optim = parts["critic_optim"] = critic_optim
    actors.policy_optim = parts["policy_optim"] = policy_optim
    on_trunk = _on_trunk(model, trunk, adapters, policy, temperature) if saved and model is not None else None
    build = partial(RewardSetting.build, known={}, reference=policy, temperature=temperature)
    return Cast(policy, actors, reward.build(known, policy, temperature, on_trunk), parts, adapters, build)


def _saved_adapter(reward: Several) -> dict[str, Tensor] | None:
    folder = find_model_dir(reward) if isinstance(reward, str) else None
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
