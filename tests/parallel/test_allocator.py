"""Memory that tensors free is kept for the next ones, and the system need not clear pages again."""

import os
import subprocess
import sys

import pytest

from grpo_guard.parallel import allocator

COUNT = """
import resource
import torch
from grpo_guard.parallel import allocator

assert allocator.{choose}()


def churn(rounds):
    for _ in range(rounds):
        held = [torch.ones(30_000_000 // 4) for _ in range(4)]  # 120 MB that are freed together
        del held


churn(3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
churn(10)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count_faults(choose):
    environment = {k: v for k, v in os.environ.items() if k not in allocator.VARIABLES}
    command = [sys.executable, "-c", COUNT.format(choose=choose)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not allocator.return_freed_memory(), reason="the C library is not glibc")
def test_memory_that_is_kept_needs_no_new_pages():
    kept, returned = count_faults("keep_freed_memory"), count_faults("return_freed_memory")
    assert kept < 100
    assert returned > 1000


@pytest.mark.parametrize("name", allocator.VARIABLES)
def test_what_the_environment_says_is_left_alone(name, monkeypatch):
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr(allocator, "set_thresholds", lambda trim: pytest.fail("was set"))
    assert not allocator.keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert not allocator.set_thresholds(1)
