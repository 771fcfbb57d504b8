"""Steps draw their next latents, and the drift measures how far their means move afterwards."""

import pytest
import torch

from grpo_guard.gaussian import advance, drift, drift_from_mean, trailing
from grpo_guard.types import Step


def make_step(mean, std=0.3):
    rows = len(mean)
    return Step(mean=mean, std=torch.full((rows,), std), gain=torch.full((rows,), 0.1))


def test_trailing_adds_axes():
    assert trailing(torch.ones(2), torch.ones(2, 3, 4)).shape == (2, 1, 1)


def test_every_row_advances_by_its_own_standard_deviation():
    mean = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    step = Step(mean=mean, std=torch.tensor([0.5, 2.0]), gain=torch.ones(2))
    eps = torch.tensor([[1.0, -1.0], [1.0, 0.0]])
    assert advance(step, eps).tolist() == [[1.5, 1.5], [5.0, 4.0]]


def test_drift_is_a_mean_over_all_dimensions():
    old = torch.linspace(-1, 1, 24).reshape(2, 3, 4)
    eps = torch.ones(2, 3, 4)
    measured = drift(make_step(old + 1), advance(make_step(old), eps), eps)
    assert measured.dimensions == 12
    assert measured.along.tolist() == pytest.approx([1, 1])
    assert measured.square.tolist() == pytest.approx([1, 1])


def test_an_old_mean_replaces_the_noise(generator):
    """The noise is the one that leads from the old mean to the next latents, whatever was drawn."""
    old, moved, eps = torch.randn(3, 5, 2, 3, generator=generator)
    x_next = advance(make_step(old), eps)
    by_noise = drift(make_step(moved), x_next, eps)
    by_mean = drift_from_mean(make_step(moved), x_next, old)
    assert torch.allclose(by_mean.along, by_noise.along, rtol=1e-4, atol=1e-5)
    assert torch.allclose(by_mean.square, by_noise.square, rtol=1e-4)
