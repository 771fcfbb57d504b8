"""Image statistics at their limits."""

import pytest
import torch

from grpo_guard.reward.statistics import ImageStatistics
from grpo_guard.schema import ConfigError
from grpo_guard.types import Prompt

NAMES = ["dark_fraction", "edge_density", "color_entropy", "saturation", "grid_energy"]


def measure(images, period=8):
    return ImageStatistics(period=period).load(torch.device("cpu"))(
        images, [Prompt(text="")] * len(images)
    )


def test_limits():
    black, white = torch.zeros(3, 32, 32), torch.ones(3, 32, 32)
    red = white * torch.tensor([1.0, 0, 0])[:, None, None]
    grid = white.clone()
    grid[:, ::8] = grid[:, :, ::8] = 0
    scores = measure(torch.stack([black, white, red, grid]))
    assert list(scores.parts) == NAMES
    assert scores.total[:2].tolist() == [1, 0]
    assert scores.parts["saturation"].tolist() == [0, 0, 1, 0]
    assert scores.parts["edge_density"][:3].tolist() == [0, 0, 0]
    assert scores.parts["edge_density"][3] > 0.15
    assert scores.parts["grid_energy"][3] > 0.9
    assert measure(grid[None], period=2).parts["grid_energy"] < 0.5


def test_a_broken_image_fails_alone():
    images = torch.rand(3, 3, 16, 16)
    images[1, 1, 1, 1] = torch.inf
    scores = measure(images)
    assert scores.failed.tolist() == [False, True, False]
    assert all(part.isnan().tolist() == [False, True, False] for part in scores.parts.values())


def test_a_grid_has_two_pixels_or_more():
    with pytest.raises(ConfigError, match="period=1 is no grid"):
        ImageStatistics(period=1)
