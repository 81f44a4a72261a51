"""Several LoRA adapters on one frozen trunk (Hu et al. 2021): policy, critic and reward share the SFT model's weights.

Only one adapter is active at a time, and it is switched between graphs, never inside one: a backward runs before the
next forward switches. With none active the trunk is the SFT model itself, which is PPO's reference.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from tutelage.core.errors import DataError


class LoraSettings(BaseModel):
    """Shape of the adapters."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    r: int = Field(8, ge=1)
    """Rank."""
    alpha: int = 16
    """The adapter's product is scaled by alpha / r."""
    targets: str | list[str] = "all-linear"
    """Linear layers that get an adapter, by the ends of their names; all-linear: all but the head."""

    def config(self, **more: Any) -> Any:
        """Peft's configuration."""
        from peft import LoraConfig

        return LoraConfig(r=self.r, lora_alpha=self.alpha, target_modules=self.targets, lora_dropout=0.0, **more)


class Adapters:
    """Named LoRA adapters inside `trunk`, which is changed in place: its own weights are frozen."""

    def __init__(self, trunk: nn.Module, names: list[str], settings: LoraSettings, seed: int = 0) -> None:
        from peft import inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        trunk.requires_grad_(False)
        config = settings.config()
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are the aim
            torch.manual_seed(seed)
            for name in names:
                inject_adapter_in_model(config, trunk, adapter_name=name)
        self.trunk, self.names, self.settings = trunk, names, settings
        self._layers: list[Any] = [m for m in trunk.modules() if isinstance(m, LoraLayer)]
        self.active: str | None = ""
        self.use(None)

    def use(self, name: str | None) -> None:
        """Make `name` the adapter of the next forward (None: the bare trunk). Only its parameters require gradients."""
        if name == self.active:
            return
        for layer in self._layers:
            layer.enable_adapters(name is not None)
            if name is not None:
                layer.set_adapter(name)
        self.active = name

    def parameters(self, name: str) -> Iterator[tuple[str, nn.Parameter]]:
        """(key, parameter) of one adapter; the key is the same for every adapter."""
        for key, parameter in self.trunk.named_parameters():
            if f".{name}." in key and ".lora_" in key:
                yield key.replace(f".{name}.", "."), parameter

    def state(self, name: str) -> dict[str, Tensor]:
        """The weights of one adapter, detached."""
        return {key: p.detach() for key, p in self.parameters(name)}

    @torch.no_grad()
    def load(self, name: str, state: dict[str, Tensor]) -> None:
        """Copy weights into one adapter; DataError when rank or layers differ."""
        own = dict(self.parameters(name))
        if own.keys() != state.keys() or any(own[k].shape != state[k].shape for k in own):
            raise DataError("the saved adapter has another rank or other layers than this trunk's adapters")
        for key, parameter in own.items():
            parameter.copy_(state[key])

    def view(self, name: str) -> AdapterView:
        """One adapter as something with a state_dict, for checkpoints."""
        return AdapterView(self, name)


class AdapterView:
    """state_dict and load_state_dict of one adapter."""

    def __init__(self, adapters: Adapters, name: str) -> None:
        self.adapters, self.name = adapters, name

    def state_dict(self) -> dict[str, Tensor]:
        return self.adapters.state(self.name)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.adapters.load(self.name, state)


def unload(model: Any, name: str) -> Any:
    """A plain copy of `model` with adapter `name` merged into its weights."""
    from peft.tuners.lora import LoraLayer

    plain = copy.deepcopy(model)
    for path, layer in list(plain.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.enable_adapters(True)
            layer.set_adapter(name)
            layer.merge()
            parent, _, leaf = path.rpartition(".")
            setattr(plain.get_submodule(parent), leaf, layer.get_base_layer())
    for module in plain.modules():
        module.__dict__.pop("peft_config", None)
        module.__dict__.pop("_hf_peft_config_loaded", None)
    return plain.requires_grad_(True)
