"""What a process decides for itself is decided once: precision, random numbers per (seed, step), threads."""

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from tutelage.core import runtime
from tutelage.core.runtime import cpu_prefers_bf16, generators_kept, reseed, set_threads


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_a_cpu_without_avx512_gets_fp32_and_bf16_still_works(name):
    """As such a CPU would see it: oneDNN is told to use no more than AVX2."""
    program = (
        "import torch; from tutelage.core.runtime import autocast, cpu_has_bf16, resolve_precision\n"
        "x = torch.full((16, 16), 0.5)\n"
        "with autocast('bf16'): y = x @ x\n"
        "print(cpu_has_bf16(), resolve_precision('auto'), y.dtype, float(y[0, 0]))"
    )
    line = [sys.executable, "-c", program]
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, name: "AVX2"})
    assert done.stdout.split() == ["False", "fp32", "torch.bfloat16", "4.0"], done.stderr


def test_threads_where_the_system_knows_no_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    assert set_threads() == 1
    torch.set_num_threads(before)


def test_the_first_verdict_on_bf16_holds_for_later_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(runtime, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(runtime, "_bf16_is_faster", lambda: True)
    cpu_prefers_bf16.cache_clear()
    assert cpu_prefers_bf16()
    monkeypatch.setattr(runtime, "_bf16_is_faster", lambda: False)  # the machine is busy just now
    cpu_prefers_bf16.cache_clear()
    assert cpu_prefers_bf16()
    file = tmp_path / "tutelage/bf16.json"
    (key,) = json.loads(file.read_text())
    assert torch.__version__ in key and "threads" in key
    for damaged in ("{", "[]", json.dumps({key: "yes"})):
        file.write_text(damaged)
        cpu_prefers_bf16.cache_clear()
        assert not cpu_prefers_bf16() and json.loads(file.read_text()) == {key: False}
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")  # cannot be written: measured, nothing said
    cpu_prefers_bf16.cache_clear()
    assert not cpu_prefers_bf16()
    cpu_prefers_bf16.cache_clear()


def draw():
    return torch.rand(2).tolist(), random.random(), np.random.rand(2).tolist()


def test_global_generators_are_functions_of_seed_and_step_and_the_callers_stay():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with generators_kept():
        reseed(0, "step", 3)
        first = draw()
        draw()
        reseed(0, "step", 3)
        assert draw() == first
        reseed(0, "step", 4)
        assert draw()[0] != first[0]
    assert torch.equal(torch.get_rng_state(), before)


def test_threads_as_begun_unless_the_environment_says_otherwise(monkeypatch, capsys):
    now = torch.get_num_threads()
    try:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        assert set_threads(3) == 3 == torch.get_num_threads()
        assert "going on with 3 threads, as begun" in capsys.readouterr().err
        monkeypatch.setenv("OMP_NUM_THREADS", "1,2")
        assert set_threads(3) == 1
        monkeypatch.setenv("OMP_NUM_THREADS", "many")
        assert set_threads() >= 1
    finally:
        torch.set_num_threads(now)
