"""Tensors of several ranks: gradients summed; sharded ones (DTensor) made whole, cut, and saved by
torch.distributed.checkpoint.

Every rank writes its own shards, as safetensors; what is read back is whole, so that any number of ranks (also one,
also with parallel=ddp) goes on from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.core.distributed import world_size


def is_sharded(tensor: Tensor) -> bool:
    """Whether each rank holds a part of the tensor."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """The tensor with all its parts; every rank has to call it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def local(tensor: Tensor) -> Tensor:
    """This rank's part, sharing memory with the tensor."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def matching(full: Tensor, like: Tensor) -> Tensor:
    """A whole tensor cut as `like` is."""
    if not is_sharded(like) or is_sharded(full):
        return full
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)


def write_shards(tensors: dict[str, Tensor], folder: Path) -> None:
    """Every rank's parts of the tensors into one folder; what is not sharded is written once."""
    import torch.distributed.checkpoint as dcp

    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    dcp.save(tensors, storage_writer=writer)  # type: ignore[arg-type]


def read_shards(folder: Path) -> dict[str, Tensor]:
    """The whole tensors of a folder written by `write_shards`, whatever the number of ranks."""
    import torch.distributed.checkpoint as dcp

    reader = dcp.HuggingFaceStorageReader(str(folder))
    known: dict[str, Any] = reader.read_metadata().state_dict_metadata
    tensors = {name: torch.empty(m.size, dtype=m.properties.dtype) for name, m in known.items()}
    dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=True)  # type: ignore[arg-type]
    return tensors


BUCKET = 1 << 23
"""Numbers of gradients that travel together (32 MiB in fp32)."""


@torch.no_grad()
def sum_gradients(params: Sequence[nn.Parameter]) -> None:
    """Sum the gradients over the ranks, in buckets. Those of shards are summed already (FSDP)."""
    plain = [p for p in params if not is_sharded(p)]
    if world_size() == 1 or not plain:
        return
    here = torch.tensor([p.grad is not None for p in plain], dtype=torch.int32)
    import torch.distributed as dist

    dist.all_reduce(here, dist.ReduceOp.MAX)  # a parameter may have no part in one rank's loss alone
    for p, somewhere in zip(plain, here.tolist()):
        if somewhere and p.grad is None:
            p.grad = torch.zeros_like(p)
    grads = [p.grad for p in plain if p.grad is not None]
    while grads:
        bucket: list[Tensor] = []
        size = 0
        while grads and (not bucket or size + grads[0].numel() <= BUCKET and grads[0].dtype == bucket[0].dtype):
            bucket.append(grads.pop(0))
            size += bucket[-1].numel()
        flat = torch.cat([g.reshape(-1) for g in bucket])
        dist.all_reduce(flat)
        for g, summed in zip(bucket, flat.split([g.numel() for g in bucket])):
            g.copy_(summed.view_as(g))
