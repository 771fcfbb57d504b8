"""What every test shares: one thread, repeatable hypotheses, SD3.5's times, and the choices of conf/.

A process that only hands out tests does without torch.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]
settings.register_profile("fixed", derandomize=True, max_examples=25, deadline=None, database=None)
settings.load_profile("fixed")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def choice():
    """The component that conf/<group>/<name>.yaml makes, by itself."""

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
    """The ten steps of SD3.5's scheduler: shifted by 3 twice at the low end, as diffusers does."""
    import torch

    def shifted(s):
        return 3 * s / (1 + 2 * s)

    low = shifted(torch.tensor(1e-3, dtype=torch.float64)).item()
    return torch.cat(
        [
            shifted(torch.linspace(1, low, 10, dtype=torch.float64)),
            torch.zeros(1, dtype=torch.float64),
        ]
    )
