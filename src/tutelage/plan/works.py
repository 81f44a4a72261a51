"""The stages' configurations as work: rows, tokens and the steps that are walked through on shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tutelage.core.runtime import resolve_precision
from tutelage.plan.closed import kv_cache_bytes
from tutelage.plan.estimate import Phases, Work, shape_of
from tutelage.plan.steps import (
    Cast,
    Setting,
    Text,
    causal_step,
    causal_step_with_text,
    evaluation,
    reward_step,
    rl_update,
)
from tutelage.train.rewards import each_reward, is_model

EVALUATED = 64
"""Rows of a measurement's forward pass (train/evaluate.py, stages/sft.py)."""


@dataclass(frozen=True)
class Unknown:
    """What only the data tells. `row_tokens`: longest row (None: the stage's limit); `prompt_tokens`: of a prompt;
    `responses`: per prompt in a ranking; `tokens`: of the whole training text (None: as many as the steps read)."""

    row_tokens: int | None = None
    prompt_tokens: int = 64
    responses: int = 4
    tokens: float | None = None


def setting_of(config: Any, model: Any, length: int, rows: int, device: str, **more: Any) -> Setting:
    precision = resolve_precision(config.precision, device)
    return Setting(model, rows, length, config.optimizer, precision, **more)


def pretrain(name: str, config: Any, model: Any, device: str, unknown: Unknown) -> Work:
    each = config.batch_size * config.block_size
    steps = config.steps if unknown.tokens is None else math.ceil(unknown.tokens / each)
    setting = setting_of(config, model, config.block_size, config.batch_size, device)

    def walk(s: Setting) -> Phases:
        out = {"training": causal_step(s)}
        return out | ({"evaluation": evaluation(s, EVALUATED)} if device == "cpu" else {})

    return Work(name, "pretrain", setting, config.batch_size, steps, each, walk, tokens=float(steps * each))


def sft(name: str, config: Any, model: Any, device: str, unknown: Unknown) -> Work:
    length = min(config.max_length, unknown.row_tokens or config.max_length)
    setting = setting_of(config, model, length, config.batch_size, device, mask=True)
    mixed = bool(config.ptx_data and config.ptx_coef)

    def walk(s: Setting) -> Phases:
        step = causal_step_with_text(s, config.ptx_batch, config.ptx_block) if mixed else causal_step(s)
        out = {"training": step}
        return out | ({"evaluation": evaluation(s, EVALUATED, logprobs=True)} if device == "cpu" else {})

    text = config.ptx_batch * config.ptx_block if mixed else 0
    return Work(name, "sft", setting, config.batch_size, config.steps, config.batch_size * length + text, walk)


def reward(name: str, config: Any, model: Any, device: str, unknown: Unknown) -> Work:
    length = min(config.max_length, unknown.row_tokens or config.max_length)
    rows = config.batch_size * unknown.responses
    setting = setting_of(config, model, length, rows, device, mask=True)
    tokens = rows * length
    return Work(name, "reward", setting, rows, config.steps, tokens, lambda s: {"training": reward_step(s)})


def dpo(name: str, config: Any, model: Any, device: str, unknown: Unknown) -> Work:
    if config.online:
        return reinforced(name, config, model, device, unknown, critic=False)
    length = min(config.max_length, unknown.row_tokens or config.max_length)
    rows = 2 * config.batch_size
    setting = setting_of(config, model, length, rows, device, mask=True, dropout=False)
    copies = 1 if config.eval_prompts else 0
    frozen = {"reference": 4.0 * copies * shape_of(model).parameters}
    work = Work(name, "dpo", setting, rows, config.updates, rows * length, lambda s: {"training": causal_step(s)})
    return replace(work, fixed=frozen)


def reinforced(
    name: str, config: Any, model: Any, device: str, unknown: Unknown, critic: bool | None = None
) -> Work:
    """PPO (with a critic), GRPO, RLOO and online DPO: a step is an update of `batch_size` episodes."""
    critic = name_kind(config) == "ppo" if critic is None else critic
    length = unknown.prompt_tokens + config.max_tokens
    rows = -(-config.batch_size // config.minibatches)
    setting = setting_of(config, model, length, rows, device, mask=True, dropout=False)
    rewards = sum(is_model(one) for one in each_reward(config.reward))
    cast = Cast(references=1, rewards=rewards, critic=critic)
    mixed = bool(config.ptx_data and config.ptx_coef)
    text = Text(config.ptx_batch, config.ptx_block) if mixed else Text()
    shape = shape_of(model)
    keys = kv_cache_bytes(shape, min(config.batch_size, 256), length, 4 if setting.precision == "fp32" else 2)

    def walk(s: Setting) -> Phases:
        found = rl_update(s, cast, config.batch_size, text)
        standing = {part: size for part, size in found["judge"].items() if part in ("weights", "optimizer")}
        return {**found, "rollout": {**standing, "kv cache": keys * s.scale.get("kv cache", 1.0)}}

    episodes = config.batch_size * length
    passes, learners = config.epochs, 2 if critic else 1
    # sampled once, then old, reference and (critic) values once, and every reward model
    forward = episodes * (2 + learners + rewards)
    training = passes * (learners * episodes + config.minibatches * text.rows * text.length)
    return Work(
        name, name_kind(config), setting, rows, config.updates, training, walk, forward_tokens=forward,
    )  # fmt: skip


def name_kind(config: Any) -> str:
    """The stage a configuration belongs to, by its class."""
    return type(config).__name__.removesuffix("Config").lower()


WORKS: dict[str, Callable[..., Work]] = {
    "pretrain": pretrain, "sft": sft, "reward": reward, "ppo": reinforced, "grpo": reinforced, "dpo": dpo,
}  # fmt: skip
"""Stages that train; the others take minutes and little memory, and are not planned."""
