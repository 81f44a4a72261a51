"""Training on several ranks: gradients summed (DDP), or weights, gradients and optimiser state sharded (FSDP2).

The ranks share one process's global batch, and every loss is divided by the global count of its units, so that the loss
curve does not depend on how many they are (up to the order of sums).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from tutelage.core.distributed import world_size
from tutelage.core.errors import ConfigError
from tutelage.train.compiled import layers_of
from tutelage.train.optim import Optimizers
from tutelage.train.sharded import matching, whole

Parallel = Literal["ddp", "fsdp"]


class ParallelKeys(BaseModel):
    """How a stage's work is shared out under torchrun."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    parallel: Parallel = "ddp"
    """Under torchrun. ddp: every rank holds the model; fsdp: weights, gradients and optimiser state are sharded."""


class Step(nn.Module):
    """An objective of a model as one module: under FSDP its forward is where the root's weights come together."""

    def __init__(self, model: nn.Module, objective: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Mapping[str, Any]) -> Any:
        return self.objective(self.model, batch)


def shard(root: nn.Module) -> nn.Module:
    """FSDP2 in place: each of the repeated layers is a unit, the rest another. Gradients are summed over the ranks, not
    averaged: losses are divided by global counts."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(next(root.parameters()).device.type, (world_size(),))
    for module in [*layers_of(root), root]:
        made = fully_shard(module, mesh=mesh)
        assert isinstance(made, FSDPModule)
        made.set_gradient_divide_factor(1.0)
        made.set_force_sum_reduction_for_comms(True)  # gloo and nccl alike
    return root


class ShardedState:
    """A sharded module as a part of the checkpoint."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.model.named_parameters()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.copy_(matching(state[name], parameter))


class Sharded:
    """A model whose trained copy is sharded: `root` computes, `model` (in it) has the weights, and the plain model is
    what everything else reads (evaluation, sampling, the finished folder), renewed by `refresh`.

    It is a part of the checkpoint: the copy's trained parameters.
    """

    def __init__(self, plain: nn.Module, objective: Callable[..., Any] | None = None) -> None:
        self.plain = plain
        made: nn.Module = copy.deepcopy(plain if objective is None else Step(plain, objective))
        self.root = shard(made)
        self.model: nn.Module = self.root if objective is None else made.model  # type: ignore[assignment]

    def optimizers(self, like: Optimizers) -> Optimizers:
        """Optimisers of the shards, as `like` is of the plain model."""
        return Optimizers(self.model, like.config, like.head_lr)

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the plain model's trained parameters up to date. Every rank has to call it."""
        own = dict(self.plain.named_parameters())
        for name, parameter in self._trained().items():
            own[name].copy_(whole(parameter))

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def state_dict(self) -> dict[str, Tensor]:
        if not all(p.requires_grad for p in self.model.parameters()):
            return {name: p.detach() for name, p in self._trained().items()}
        # a tied matrix under both names and the buffers too, as the plain model's own state has them
        every = self.plain.state_dict(keep_vars=True)
        place = {id(p): name for name, p in self.plain.named_parameters()}
        own = {name: p.detach() for name, p in self.model.named_parameters()}
        return {k: own[place[id(v)]] if id(v) in place else v for k, v in every.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(matching(state[name], tensor))


def sharded(model: nn.Module, objective: Callable[..., Any] | None, parallel: Parallel) -> Sharded | None:
    """The model sharded, where there are ranks and `parallel` says so; else None, and the ranks begin with rank 0's
    weights."""
    if world_size() == 1:
        return None
    import torch.distributed as dist

    for tensor in [*model.parameters(), *model.buffers()]:
        dist.broadcast(tensor.detach(), 0)
    return Sharded(model, objective) if parallel == "fsdp" else None


def require_one(what: str) -> None:
    """ConfigError under torchrun for what is not shared out among ranks."""
    if world_size() > 1:
        raise ConfigError(f"{what} is not shared among processes yet, and {world_size()} were started; run it without "
                          "torchrun")  # fmt: skip
