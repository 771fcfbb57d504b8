"""The statistics tell extreme pictures apart, at any size."""

import torch

from grpo_guard.world.statistics import picture_statistics


def test_statistics_tell_extremes_apart_at_any_size():
    flat, black = torch.full((1, 3, 30, 50), 0.9), torch.zeros(1, 3, 30, 50)
    stripes = flat * (torch.arange(50) % 2)
    colors = torch.rand((1, 3, 30, 50), generator=torch.Generator().manual_seed(0))
    measures = picture_statistics(torch.cat([flat, black, stripes, colors]))
    assert measures["dark_fraction"].tolist()[:3] == [0, 1, 0.5]
    assert measures["edge_density"].tolist()[:3] == [0, 0, 0.5]
    assert measures["saturation"].tolist()[:3] == [0, 0, 0]
    assert measures["saturation"][3] > 0.4
    assert measures["color_entropy"][0] == 0
    assert measures["color_entropy"][3] > 0.95
    assert measures["grid_energy"][2] > 0.99
    assert measures["grid_energy"][3] < 0.15


def test_a_patch_grid_shows_at_its_period():
    tiles = ((torch.arange(64) // 8) % 2).float().expand(1, 3, 64, 64)
    assert picture_statistics(tiles, period=16)["grid_energy"] > 0.99
    assert picture_statistics(tiles, period=4)["grid_energy"] < 0.01
