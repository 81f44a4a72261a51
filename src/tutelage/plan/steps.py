"""The training steps of the stages, walked through on shapes: what each holds at its highest moment.

They follow train/loop.py, train/update.py and train/ppo.py; those read values (counts, norms) that shapes have not, so
the order of forwards, backwards and steps stands here once more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM

from tutelage.core.runtime import autocast
from tutelage.loss.lm import cross_entropy_sum, entropy_from_logits, token_logprobs
from tutelage.loss.policy import policy_loss, value_loss
from tutelage.model.heads import ValueModel
from tutelage.plan.trace import Ledger, hold_model, hold_optimizer, model_on_shapes, shapes_only, step
from tutelage.train.optim import OptimConfig, Optimizers

Parts = dict[str, float]


@dataclass(frozen=True)
class Setting:
    """How a model is run. `rows`: of a forward pass; `length`: tokens of each."""

    config: Any
    rows: int
    length: int
    optimizer: OptimConfig = OptimConfig()
    precision: str = "fp32"
    attention: str = "eager"
    mask: bool = False
    checkpointing: bool = False
    dropout: bool = True
    scale: Mapping[str, float] = field(default_factory=dict)
    """Share of each part that one rank holds (see Ledger.peak)."""

    @property
    def vocab(self) -> int:
        return int(self.config.get_text_config().vocab_size)


def _ids(setting: Setting, rows: int | None = None, length: int | None = None) -> dict[str, Tensor]:
    ids = torch.zeros(rows or setting.rows, length or setting.length, dtype=torch.long)
    return {"input_ids": ids, **({"attention_mask": torch.ones_like(ids)} if setting.mask else {})}


def _begin(setting: Setting, ledger: Ledger) -> Any:
    model: Any = model_on_shapes(AutoModelForCausalLM, setting.config, setting.attention)
    if setting.checkpointing:
        # renamed in transformers 5.2x
        (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
    model.train(setting.dropout or setting.checkpointing)
    hold_model(ledger, model)
    return model


def _text_backward(setting: Setting, model: Any, batch: dict[str, Tensor]) -> None:
    """One micro-batch of next-token prediction (train/objectives.py causal), gradients left in the buffers."""

    def loss() -> Tensor:
        logits = model(**batch, use_cache=False).logits
        return cross_entropy_sum(logits, batch["input_ids"])[0]

    with autocast(setting.precision):
        total = loss()
    total.backward()


def causal_step(setting: Setting) -> Parts:
    """Pretraining and SFT: the peak of one optimiser step of one micro-batch, from a running start (the optimiser has
    its state)."""
    with shapes_only(), Ledger(setting.vocab) as ledger:
        model = _begin(setting, ledger)
        optimizers = Optimizers(model, setting.optimizer)
        hold_optimizer(ledger, optimizers)
        ledger.begin()
        _text_backward(setting, model, _ids(setting))
        step(ledger, optimizers)
        return ledger.peak(setting.scale)


def causal_step_with_text(setting: Setting, rows: int, length: int) -> Parts:
    """SFT with pretraining text mixed in: both losses are one sum before the backward pass."""
    with shapes_only(), Ledger(setting.vocab) as ledger:
        model = _begin(setting, ledger)
        optimizers = Optimizers(model, setting.optimizer)
        hold_optimizer(ledger, optimizers)
        ledger.begin()

        def loss() -> Tensor:
            total: Any = 0
            for batch in (_ids(setting), _ids(replace(setting, mask=False), rows, length)):
                total = total + cross_entropy_sum(model(**batch, use_cache=False).logits, batch["input_ids"])[0]
            return total

        with autocast(setting.precision):
            total = loss()
        total.backward()
        step(ledger, optimizers)
        return ledger.peak(setting.scale)


def evaluation(setting: Setting, rows: int, with_optimizer: bool = True, logprobs: bool = False) -> Parts:
    """A measurement between steps: `rows` rows without gradient, in fp32. `logprobs`: SFT's, which keeps a log-prob a
    token."""
    with shapes_only(), Ledger(setting.vocab) as ledger:
        model = _begin(replace(setting, checkpointing=False, dropout=False), ledger)
        optimizers = Optimizers(model, setting.optimizer) if with_optimizer else None
        if optimizers is not None:
            hold_optimizer(ledger, optimizers)
        ledger.begin()
        with torch.no_grad():
            batch = _ids(setting, rows)
            logits = model(**batch, use_cache=False).logits
            if logprobs:
                -token_logprobs(logits, batch["input_ids"])
            else:
                cross_entropy_sum(logits, batch["input_ids"])
        return ledger.peak(setting.scale)


def _trunk(setting: Setting) -> nn.Module:
    return model_on_shapes(AutoModel, setting.config, setting.attention)


def reward_step(setting: Setting) -> Parts:
    """Reward training: one part of `rows` responses, a score each at its last token (the SFT model beside it)."""
    with shapes_only(), Ledger(setting.vocab) as ledger:
        sft = _begin(replace(setting, dropout=False), ledger)
        model = ValueModel(_trunk(setting), nn.Linear(_width(setting), 1))
        hold_model(ledger, model)
        optimizers = Optimizers(model, setting.optimizer)
        hold_optimizer(ledger, optimizers)
        ledger.begin()
        ids = _ids(setting)["input_ids"]
        with autocast(setting.precision):
            total = model(ids, torch.ones_like(ids))[:, -1].sum()
        total.backward()
        step(ledger, optimizers)
        del sft
        return ledger.peak(setting.scale)


def _width(setting: Setting) -> int:
    config = setting.config.get_text_config()
    return int(config.hidden_size)


@dataclass(frozen=True)
class Cast:
    """Who is in memory beside the policy: frozen copies (reference), reward models, a critic that learns."""

    references: int = 1
    rewards: int = 1
    critic: bool = True


@dataclass(frozen=True)
class Text:
    """Pretraining text of a minibatch; no rows: none."""

    rows: int = 0
    length: int = 0


def rl_update(setting: Setting, cast: Cast, batch: int, text: Text = Text()) -> dict[str, Parts]:
    """PPO, GRPO, RLOO: the peaks of "judge" (log-probs before the first step) and "update" (one minibatch of `rows`).

    `batch`: episodes of a rollout, whose log-probs and values are kept; small beside the rest.
    """
    with shapes_only(), Ledger(setting.vocab) as ledger:
        policy = _begin(replace(setting, dropout=False), ledger)
        frozen = [_begin(replace(setting, dropout=False), ledger).requires_grad_(False) for _ in range(cast.references)]
        for _ in range(cast.rewards):
            frozen.append(_trunk(setting).requires_grad_(False))
            hold_model(ledger, frozen[-1])
        optimizers = [Optimizers(policy, setting.optimizer)]
        critic = None
        if cast.critic:
            critic = ValueModel(_trunk(setting), nn.Linear(_width(setting), 1))
            hold_model(ledger, critic)
            optimizers.append(Optimizers(critic, setting.optimizer))
        for one in optimizers:
            hold_optimizer(ledger, one)
        kept = [torch.zeros(batch, setting.length) for _ in range(8)]
        ledger.begin()
        with torch.no_grad(), autocast(setting.precision):
            _judge(setting, policy, frozen[: cast.references], critic)
        found = {"judge": ledger.peak(setting.scale)}
        ledger.begin()
        _minibatch(setting, policy, critic, text)
        for one in optimizers:
            step(ledger, one)
        del kept
        return {**found, "update": ledger.peak(setting.scale)}


def _judge(setting: Setting, policy: Any, references: list[Any], critic: Any) -> None:
    batch = _ids(setting)
    tokens = batch["input_ids"]

    def logprobs(model: Any, entropy: bool) -> Tensor:
        logits = model(**batch, use_cache=False).logits
        found = token_logprobs(logits, tokens)
        if entropy:
            entropy_from_logits(logits[:, :-1].float())
        return found

    kept = [logprobs(policy, True), *(logprobs(model, False) for model in references)]
    if critic is not None:
        kept.append(critic(tokens, torch.ones_like(tokens))[:, :-1].float())


def _minibatch(setting: Setting, policy: Any, critic: Any, text: Text) -> None:
    batch = _ids(setting)
    tokens = batch["input_ids"]
    ones = torch.ones(setting.rows, setting.length - 1)

    def logprobs() -> Tensor:
        return token_logprobs(policy(**batch, use_cache=False).logits, tokens)

    with autocast(setting.precision):
        logp = logprobs()
    loss, _ = policy_loss(logp, ones, ones, ones)
    loss.backward()
    if text.rows:
        _text_backward(setting, policy, _ids(setting, text.rows, text.length))
    if critic is None:
        return
    with autocast(setting.precision):
        values = critic(tokens, torch.ones_like(tokens))[:, :-1].float()
    loss, _ = value_loss(values, ones, ones, ones)
    loss.backward()


def linear_in_rows(peak: Callable[[int], Parts], low: int = 1, high: int = 2) -> tuple[float, float]:
    """(bytes at no row, bytes a row) of a peak as a function of the rows, from two of its values."""
    first, second = (sum(peak(rows).values()) for rows in (low, high))
    slope = (second - first) / (high - low)
    return first - slope * low, slope
