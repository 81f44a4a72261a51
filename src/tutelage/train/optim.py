"""Optimisers and schedules: AdamW, or Muon for hidden matrices with AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn


class OptimConfig(BaseModel):
    """How parameters move."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    """Peak AdamW learning rate (with Muon: for embeddings, norms, biases and heads)."""
    muon_lr: float = 0.02
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    """Global gradient-norm limit."""
    warmup: float = 0.02
    """Share of the steps with a rising rate."""
    decay: float = 0.5
    """Share of the steps, at the end, over which the rate falls linearly to `final`."""
    final: float = 0.0
    """Last learning rate as a share of the peak."""


class Optimizers:
    """One or two torch optimisers that step together under one schedule."""

    def __init__(self, model: nn.Module, config: OptimConfig, head_lr: dict[str, float] | None = None):
        """`head_lr` maps a parameter-name prefix to a multiple of the learning rate (reward features use it)."""
        self.config = config
        self.params = [p for p in model.parameters() if p.requires_grad]
        embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        muon, groups = [], {}  # type: ignore[var-annotated]
        for name, p in model.named_parameters():
            if not p.requires_grad:
                continue
            scale = next((s for prefix, s in (head_lr or {}).items() if name.startswith(prefix)), 1.0)
            hidden = p.ndim == 2 and id(p) not in embeddings and "head" not in name and "score" not in name
            if config.name == "muon" and hidden and scale == 1.0:
                muon.append(p)
            else:
                groups.setdefault((scale, p.ndim >= 2), []).append(p)
        self.optimizers: list[torch.optim.Optimizer] = []
        if groups:
            adam_groups = [
                {"params": ps, "lr": config.lr * scale, "weight_decay": config.weight_decay if decay else 0.0}
                for (scale, decay), ps in groups.items()
            ]
            self.optimizers.append(torch.optim.AdamW(adam_groups, betas=config.betas, eps=config.eps, fused=True))
        if muon:
            self.optimizers.append(
                torch.optim.Muon(
                    muon, lr=config.muon_lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
                )
            )
        self._peaks = [[g["lr"] for g in o.param_groups] for o in self.optimizers]

    def scale(self, done: float) -> float:
        """Schedule at `done` in [0, 1): warm-up, plateau, linear decay."""
        c = self.config
        if done < c.warmup:
            return (done + 1e-9) / c.warmup if c.warmup else 1.0
        left = 1.0 - done
        if c.decay and left < c.decay:
            return c.final + (1 - c.final) * left / c.decay
        return 1.0

    def step(self, done: float) -> tuple[float, bool]:
        """Clip and step. Returns (gradient norm, finite); a non-finite gradient leaves the weights untouched."""
        norm = float(nn.utils.clip_grad_norm_(self.params, self.config.clip))
        finite = norm == norm and norm != float("inf")
        if finite:
            scale = max(self.scale(done), 1e-4)
            for optimizer, peaks in zip(self.optimizers, self._peaks):
                for group, peak in zip(optimizer.param_groups, peaks):
                    group["lr"] = peak * scale
                optimizer.step()
        self.zero_grad()
        return norm, finite

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        return [o.state_dict() for o in self.optimizers]

    def load_state_dict(self, states: Iterable[dict[str, Any]]) -> None:
        for optimizer, state in zip(self.optimizers, states):
            optimizer.load_state_dict(state)
