"""Memory that tensors free is kept for the next ones, unless the environment says otherwise."""

import os
import subprocess
import sys

import pytest

from grpo_guard.parallel import allocator

MEASURE = """
from pathlib import Path

import torch
from grpo_guard.parallel import allocator


def resident_megabytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


assert allocator.{choose}()
before = resident_megabytes()
held = [torch.ones(30_000_000 // 4) for _ in range(8)]  # 240 MB that are freed together
del held
print(resident_megabytes() - before)
"""


def measure_kept(choose):
    """Return the MB that a process still has after it has freed 240 MB of tensors."""
    environment = {k: v for k, v in os.environ.items() if k not in allocator.VARIABLES}
    command = [sys.executable, "-c", MEASURE.format(choose=choose)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.skipif(not allocator.return_freed_memory(), reason="the C library is not glibc")
def test_memory_is_kept_or_returned():
    assert measure_kept("keep_freed_memory") > 200
    assert measure_kept("return_freed_memory") < 120


@pytest.mark.parametrize("name", allocator.VARIABLES)
def test_what_the_environment_says_is_left_alone(name, monkeypatch):
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr(allocator, "set_thresholds", lambda trim: pytest.fail("was set"))
    assert not allocator.keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert not allocator.set_thresholds(1)
