"""The ranks of one torchrun job, as a process of it sees them; without torchrun there is one rank.

torchrun tells every process its rank, how many there are and where they meet. Every rank runs the same command on the
same files (a file system that all nodes share): rank 0 alone writes, prints and decides, the others compute with it and
wait for its word. What one rank cannot do ends all of them, with that rank's message.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from tutelage.core.errors import Interrupted, RunError, in_words

T = TypeVar("T")
PATIENCE = timedelta(hours=24)
"""How long a rank waits for another that works alone; a rank that dies is noticed at once, by its closed connection."""

_store: Any = None
_told: BaseException | None = None
_alone = 0


class PeerError(RunError):
    """Another rank failed first; the message is its own, and that rank has said it."""


def launched() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if {"RANK", "MASTER_ADDR"} <= os.environ.keys() else 1


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Context in which the processes of one torchrun job are ranks of one process group; nothing without torchrun.

    gloo carries what lies on the CPU, nccl what lies on a GPU (one each, by LOCAL_RANK). Ranks other than 0 print
    nothing meanwhile. An error ends every rank: PeerError on those that did not cause it.
    """
    global _store
    if launched() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    store, rank_, size = next(dist.rendezvous("env://", timeout=PATIENCE))
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=store, rank=rank_, world_size=size, timeout=PATIENCE)
    _store = store
    try:
        with _silent() if rank_ else contextlib.nullcontext():
            yield
        dist.barrier()
        dist.destroy_process_group()  # after an error it would wait for ranks that are gone
    except Exception as error:
        raise explained(error) from error
    finally:
        _store = None


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def explained(error: Exception) -> Exception:
    """The error that started it: this one, told to the other ranks, or a PeerError with the words of one that failed
    before. A connection that another rank's death has closed says no more than that."""
    global _told
    if _store is None or isinstance(error, PeerError | Interrupted) or error is _told:
        return error
    if _store.check(["error"]):
        return PeerError(_store.get("error").decode())
    if type(error) is RuntimeError and "gloo" in str(error):
        return RunError("another process of this run is gone (killed?); the same command resumes")
    if _store.add("failed", 1) > 1:  # of several at once the first speaks
        _store.wait(["error"], timedelta(seconds=10))
        return PeerError(_store.get("error").decode())
    _store.set("error", f"rank {rank()}: {in_words(error)}")
    _told = error
    return error


def rank() -> int:
    """This process's number; 0 without torchrun and within `alone`."""
    if _store is None or _alone:
        return 0
    import torch.distributed as dist

    return dist.get_rank()


def world_size() -> int:
    """How many ranks work together; 1 without torchrun and within `alone`."""
    if _store is None or _alone:
        return 1
    import torch.distributed as dist

    return dist.get_world_size()


def follows() -> bool:
    """Whether another process writes and prints for this one, even within `alone`."""
    if _store is None:
        return False
    import torch.distributed as dist

    return dist.get_rank() > 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Context in which this process counts as the only one, so that what runs in it waits for no other."""
    global _alone
    _alone += 1
    try:
        yield
    finally:
        _alone -= 1


def broadcast(value: T) -> T:
    """Rank 0's value, on every rank."""
    if world_size() == 1:
        return value
    import torch.distributed as dist

    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def gather(value: T) -> list[T]:
    """Every rank's value, in the ranks' order, on every rank."""
    if world_size() == 1:
        return [value]
    import torch.distributed as dist

    held: list[Any] = [None] * world_size()
    dist.all_gather_object(held, value)
    return held


def all_sum(values: Sequence[float]) -> list[float]:
    """Each number summed over the ranks, in double precision; one process gets its numbers back."""
    if world_size() == 1:
        return list(values)
    import torch
    import torch.distributed as dist

    sums = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()


def any_rank(value: bool) -> bool:
    """Whether it holds on some rank: what they decide must be decided alike."""
    return bool(all_sum([float(value)])[0])


def from_main(function: Callable[[], T]) -> T:
    """What rank 0 gets by calling `function` while the others wait; its exception is raised on every rank."""
    if world_size() == 1:
        return function()
    found: Any = None
    if not follows():
        try:
            with alone():
                found = (True, function())
        except Exception as error:
            found = (False, error)
    good, value = broadcast(found)
    if not good:
        raise value
    return value


def agreed(function: Callable[[], T]) -> list[T]:
    """What every rank gets by calling `function` for itself, in the ranks' order; the first exception is raised on
    all of them."""
    if world_size() == 1:
        return [function()]
    found: Any = None
    failed: Exception | None = None
    try:
        found = function()
    except Exception as error:
        failed = error
    every = gather((found, failed))
    if first := next((error for _, error in every if error is not None), None):
        raise first
    return [value for value, _ in every]


def own(s: slice) -> slice:
    """This rank's part of rows s.start..s.stop: neighbours, shared out as evenly as their number allows."""
    count, size, number = s.stop - s.start, world_size(), rank()
    return slice(s.start + count * number // size, s.start + count * (number + 1) // size)
