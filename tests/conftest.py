"""Fixtures of all tests, and Hypothesis with the same examples in every run.

torch and hydra are imported inside the fixtures: the process of pytest-xdist that only hands out
tests then starts without them.
"""

from __future__ import annotations

import functools
import gc
import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]
settings.register_profile("fixed", derandomize=True, max_examples=25, deadline=None, database=None)
settings.load_profile("fixed")
# Results are compared with those of the CPU to the last bit, and processes of one test would share
# a GPU, which NCCL refuses. What needs a device is tried on a pretended one (tests/pretended).
os.environ["CUDA_VISIBLE_DEVICES"] = ""


LONGEST = ("test_strategies.py", "test_pretended.py", "test_package.py", "test_fuzz.py")
"""Files with few tests that take long."""


def pytest_collection_modifyitems(items):
    """Begin with the longest files: one of them at the end would leave a core idle."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish():
    """Keep what is imported out of later collections.

    Every run of the loop begins with one (grpo_guard/session.py), which would take .3 s each time.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    """Let libraries find their objects at the end of the process, or they report leaks."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Compute on one thread: several test processes share the cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_signals():
    """Restore the handlers of signals: commands that a test runs in its process set them.

    Servers that a later test forks would inherit them.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    handlers = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def choice():
    """Return a function (group, name) -> the component that conf/<group>/<name>.yaml describes."""
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    @functools.cache
    def make(group, name):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return instantiate(compose(overrides=[f"+{group}={name}"])[group], _convert_="all")

    return make


@pytest.fixture
def generator():
    import torch

    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def sd35():
    """Return the eleven times of SD3.5's scheduler with ten steps, float64.

    As in diffusers, the lowest time is shifted by 3 twice: once by itself and once with the others.
    """
    import torch

    def shift(s):
        return 3 * s / (1 + 2 * s)

    lowest = shift(torch.tensor(1e-3, dtype=torch.float64)).item()
    times = shift(torch.linspace(1, lowest, 10, dtype=torch.float64))
    return torch.cat([times, torch.zeros(1, dtype=torch.float64)])
