"""What follows the last trained step: the schedule's end, or fewer steps of a better solver to the same place."""

import itertools

import pytest
import torch
from toy import SHAPE, experiment, sampled

from grpo_guard.final_steps.dpm import Dpm
from grpo_guard.final_steps.euler import Euler
from grpo_guard.rollout import transitions
from grpo_guard.sde.flow import Flow
from grpo_guard.sde.window import Window
from grpo_guard.session import prepare
from grpo_guard.train import iterate
from grpo_guard.types import Condition, ConfigError

NOTHING = Condition(tokens=torch.zeros(4, 1, 1), pooled=torch.zeros(4, 4))


def to_a_point(x, t, condition):
    """The velocity field of data that is one point, 3 everywhere: solved exactly by any solver of the ODE."""
    return (x - 3) / t.reshape(-1, 1, 1, 1)


def to_a_gaussian(x, t, condition):
    """The velocity field of data N(0, 1): from x_t the ODE goes to x_t / sqrt((1-t)^2 + t^2)."""
    t = t.reshape(-1, 1, 1, 1)
    return x * (2 * t - 1) / ((1 - t) ** 2 + t**2)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_solver_reaches_a_point(steps, generator):
    x = torch.randn(4, *SHAPE, generator=generator)
    found = Dpm(steps=steps).finish(to_a_point, x, torch.tensor(0.6), NOTHING)
    assert torch.allclose(found, torch.full_like(x, 3), atol=1e-4)


@pytest.mark.parametrize("steps", [3, 6, 12])
def test_a_solver_is_closer_than_euler(steps, generator):
    x = torch.randn(4, *SHAPE, generator=generator)
    wanted, euler = x / (0.4**2 + 0.6**2) ** 0.5, x
    for now, after in itertools.pairwise(torch.linspace(0.6, 0, steps + 1)):
        euler = euler + (after - now) * to_a_gaussian(euler, now.expand(4), NOTHING)
    found = Dpm(steps=steps).finish(to_a_gaussian, x, torch.tensor(0.6), NOTHING)
    assert (found - wanted).abs().max() < 0.6 * (euler - wanted).abs().max()


def test_the_trained_steps_are_walked_as_ever():
    sde = Flow(level=0.7, window=Window(first=0, last=2))
    long, short = (
        sampled(prepare(experiment(sde=sde, final_steps=final_steps)))
        for final_steps in (Euler(), Dpm(steps=2))
    )
    assert long.x.shape[1] == 6
    assert short.x.shape[1] == 3
    assert torch.equal(long.x[:, :3], short.x)
    assert torch.equal(long.sample, long.x[:, -1])
    assert not torch.allclose(short.sample, short.x[:, -1], atol=0.1)
    assert torch.equal(
        transitions(long, torch.zeros(32)).step, transitions(short, torch.zeros(32)).step
    )


def test_an_iteration_with_a_short_tail():
    sde = Flow(level=0.7, window=Window(first=0, last=2))
    _, metrics = iterate(prepare(experiment(sde=sde, final_steps=Dpm(steps=2))), 0)
    assert {key[-2:] for key in metrics if key.startswith("grad_share")} == {"00", "01"}


def test_no_steps_are_refused():
    with pytest.raises(ConfigError, match=r"steps=0 is not positive; 2 to 4 are usual"):
        Dpm(steps=0)
