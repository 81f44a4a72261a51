"""One training stage on given devices: what a rank holds, the rows that fit, FLOPs, time and cost."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from transformers import AutoModelForCausalLM

from tutelage.plan.closed import Shape, gathered_bytes, tensor_share, zero_divisors
from tutelage.plan.cost import bill, flops_6nd, forward_flops, hoffmann_tokens, optimal_tokens
from tutelage.plan.hardware import RESERVE, Hardware
from tutelage.plan.steps import Setting, linear_in_rows
from tutelage.plan.trace import model_on_shapes, shapes_only

Parallel = Literal["ddp", "fsdp"]
Phases = dict[str, dict[str, float]]
Walk = Callable[[Setting], Phases]
"""A stage's steps on shapes: (setting) -> peak by part of each of its phases."""


@dataclass(frozen=True)
class Machine:
    """The devices and how the work is divided: `data` ranks hold different rows, `tensor` ranks share a layer."""

    hardware: Hardware
    devices: int = 1
    tensor: int = 1
    parallel: Parallel = "ddp"
    checkpointing: bool = False
    mfu: float = 0.4
    mfu_source: str = "assumed"
    price: float | None = None

    @property
    def data(self) -> int:
        return self.devices // self.tensor

    @property
    def room(self) -> float:
        """Bytes of a device that a rank may use."""
        return self.hardware.memory * (1 - RESERVE)

    @property
    def attention(self) -> str:
        """As the stages have it: eager on a CPU, an attention that writes no scores on a GPU."""
        return "eager" if self.hardware.is_cpu else "sdpa"


@dataclass(frozen=True)
class Work:
    """What a stage does. `rows`: sequences of a step over all ranks, of `length` tokens; `forward_tokens` and
    `training_tokens`: tokens of a step that only go forward, and forward and backward (counted once a model);
    `walk`: see Walk; `tokens`: new tokens of text of the whole run, for the scaling laws (pretraining only)."""

    name: str
    kind: str
    setting: Setting
    rows: int
    steps: int
    training_tokens: float
    walk: Walk
    forward_tokens: float = 0.0
    fixed: Mapping[str, float] = field(default_factory=dict)
    tokens: float | None = None


@dataclass(frozen=True)
class Estimate:
    """A stage's plan; bytes, FLOPs, seconds. `memory`: of one rank by part at the highest moment of phase `phase`."""

    name: str
    kind: str
    parameters: int
    devices: str
    parallel: str
    precision: str
    rows: int
    length: int
    micro_batch: int
    accumulate: int
    largest_micro_batch: int
    memory: dict[str, float]
    phase: str
    phases: dict[str, float]
    room: float
    steps: int
    tokens: float
    flops: float
    flops_6nd: float
    mfu: float
    mfu_source: str
    step_seconds: float
    days: float
    device_hours: float
    cost: float | None
    chinchilla_tokens: float
    hoffmann_tokens: float

    @property
    def fits(self) -> bool:
        return self.largest_micro_batch > 0

    def as_json(self) -> dict[str, Any]:
        """Every number, for out=."""
        return {**asdict(self), "total_bytes": sum(self.memory.values()), "fits": self.fits}


def shape_of(config: Any) -> Shape:
    """The sizes of a config's causal LM, its parameters counted on the model itself (without contents)."""
    text = config.get_text_config()
    with shapes_only():
        model: Any = model_on_shapes(AutoModelForCausalLM, config, "eager")
        total = sum(p.numel() for p in model.parameters())
        tables = {id(m.weight): m.weight.numel() for m in model.modules() if type(m).__name__ == "Embedding"}
        head = model.get_output_embeddings()
        tied = head is not None and id(head.weight) in tables
        matmul = total - sum(tables.values()) + (tables[id(head.weight)] if tied else 0)
        blocks = [m for m in model.modules() if type(m).__name__.endswith(("DecoderLayer", "Block", "Layer"))]
        layer = max((sum(p.numel() for p in m.parameters()) for m in blocks), default=0)
    heads = int(text.num_attention_heads)
    return Shape(
        parameters=total, matmul=matmul, layer=layer, layers=int(text.num_hidden_layers), width=int(text.hidden_size),
        heads=heads, kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(text, "head_dim", None) or text.hidden_size // heads), vocab=int(text.vocab_size),
        context=int(getattr(text, "max_position_embeddings", 0) or 0),
    )  # fmt: skip


def shares(machine: Machine, shape: Shape, length: int) -> dict[str, float]:
    """Share of each part that one rank holds."""
    stage = 3 if machine.parallel == "fsdp" else 0
    weights, gradients, optimizer = (1 / (d * machine.tensor) for d in zero_divisors(machine.data, stage))
    flash = machine.attention != "eager"
    return {
        "weights": weights, "gradients": gradients, "optimizer": optimizer,
        # FSDP gathers a layer's copy in the compute dtype and drops it again: see gathered_bytes
        "casts": 0.0 if machine.parallel == "fsdp" else 1 / machine.tensor,
        "logits": 1 / machine.tensor, "kv cache": 1 / machine.tensor,
        "activations": tensor_share(shape, length, machine.tensor, flash) if machine.tensor > 1 else 1.0,
    }  # fmt: skip


def estimate(work: Work, machine: Machine) -> Estimate:
    """The plan of one stage on the machine."""
    shape = shape_of(work.setting.config)
    setting = replace(
        work.setting, scale=shares(machine, shape, work.setting.length), attention=machine.attention,
        checkpointing=machine.checkpointing,
    )  # fmt: skip
    extra = dict(work.fixed)
    if machine.parallel == "fsdp":
        itemsize = 2 if setting.precision == "bf16" else 4
        extra["gathered"] = gathered_bytes(shape, itemsize) / machine.tensor

    @functools.cache
    def phases(rows: int) -> Phases:
        return {name: {**parts, **extra} for name, parts in work.walk(replace(setting, rows=rows)).items()}

    largest = _largest(phases, machine.room)
    wanted = -(-work.rows // machine.data)
    micro = max(1, min(wanted, largest))
    found = phases(micro)
    phase = max(found, key=lambda name: sum(found[name].values()))
    per_token = forward_flops(shape.matmul, shape.layers, shape.attention_width, setting.length)
    flops = work.steps * per_token * (3 * work.training_tokens + work.forward_tokens)
    spent = bill(flops, machine.devices, machine.hardware.peak, machine.mfu, machine.price)
    tokens = work.tokens if work.tokens is not None else work.steps * work.training_tokens
    return Estimate(
        name=work.name, kind=work.kind, parameters=shape.parameters,
        devices=f"{machine.devices}x{machine.hardware.name}", precision=setting.precision,
        parallel=_words(machine), rows=work.rows, length=setting.length, micro_batch=micro,
        accumulate=-(-wanted // micro), largest_micro_batch=largest, memory=found[phase], phase=phase,
        phases={name: sum(parts.values()) for name, parts in found.items()}, room=machine.room, steps=work.steps,
        tokens=tokens, flops=flops, flops_6nd=flops_6nd(shape.parameters, tokens), mfu=machine.mfu,
        mfu_source=machine.mfu_source, step_seconds=spent.seconds / work.steps, days=spent.days,
        device_hours=spent.device_hours, cost=spent.cost, chinchilla_tokens=optimal_tokens(shape.parameters),
        hoffmann_tokens=hoffmann_tokens(shape.parameters),
    )  # fmt: skip


def _largest(phases: Callable[[int], Phases], room: float, most: int = 1 << 20) -> int:
    """Rows of a forward pass that fit: every phase's peak is nearly linear in them. 0: not even one."""

    def highest(rows: int) -> dict[str, float]:
        found = phases(rows)
        top = max(found, key=lambda name: sum(found[name].values()))
        return found[top]

    fixed, slope = linear_in_rows(highest, 2, 4)
    rows = max(0, min(most, int((room - fixed) / max(1.0, slope))))
    # with several phases the peak is only piecewise linear, so the guess is tried, and lowered while it does not fit
    while rows > 1 and (used := sum(highest(rows).values())) > room:
        rows = min(rows - 1, int(rows * room / used))
    return rows if rows > 1 else int(sum(highest(1).values()) <= room)


def _words(machine: Machine) -> str:
    if machine.devices == 1:
        return "one device"
    tensor = f" x TP {machine.tensor}" if machine.tensor > 1 else ""
    return f"{machine.parallel.upper()} {machine.data}{tensor}"
