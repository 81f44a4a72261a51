"""Out of memory: the libraries' words are known, and the error names keys that the stage has."""

import errno

import pytest
import torch

from tutelage.core.errors import RunError
from tutelage.core.memory import out_of_memory, ran_out
from tutelage.core.rundir import read_manifest
from tutelage.pipeline.stages import launch
from tutelage.stages import tokenizer

CUDA = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 139.80 GiB"
MPS = "MPS backend out of memory (MPS allocated: 5.05 GB). Tried to allocate 1.50 GB on private pool."


def exhausted():
    torch.empty(1 << 60)


def test_what_says_that_there_is_no_memory():
    with pytest.raises(RuntimeError) as error:
        exhausted()
    assert ran_out(error.value) and ran_out(MemoryError()) and ran_out(torch.OutOfMemoryError(CUDA))
    assert ran_out(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert ran_out(RuntimeError(MPS)) and not ran_out(RuntimeError("shapes differ")) and not ran_out(OSError("memory"))
    says = str(out_of_memory("runs/ppo", error.value, {"minibatches": 4, "batch_size": 256, "method": "full"}))
    assert says.startswith(f"runs/ppo: out of memory (asked for {1 << 62} bytes); try minibatches=8, or batch_size=128")
    assert "method=lora" in says and "checkpointing" not in says
    assert "method" not in str(out_of_memory("x", MemoryError(), {"method": "star"}))
    assert "(asked for 20.00 MiB); a smaller model" in str(out_of_memory("x", RuntimeError(CUDA), {"method": "lora"}))
    assert "(asked for 1.50 GB)" in str(out_of_memory("x", RuntimeError(MPS), {}))


def test_a_stage_without_memory_ends_with_the_keys_to_change(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer, "run", lambda *_: exhausted())
    with pytest.raises(RunError, match="out: out of memory .asked for") as error:
        launch("tokenizer", {"out": str(tmp_path / "out")})
    assert isinstance(error.value.__cause__, RuntimeError)
    manifest = read_manifest(tmp_path / "out")
    assert manifest["status"] == "failed" and manifest["error"].startswith("RunError: ")
