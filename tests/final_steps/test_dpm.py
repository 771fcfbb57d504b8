"""After the last trained step: the rest of the schedule, or fewer steps of a better solver."""

import itertools

import pytest
import torch
from toy import SHAPE, draw_trajectory, experiment

from grpo_guard.final_steps.dpm import Dpm
from grpo_guard.final_steps.euler import Euler
from grpo_guard.rollout import transitions
from grpo_guard.schema import ConfigError
from grpo_guard.sde.flow import Flow
from grpo_guard.sde.window import Window
from grpo_guard.session import prepare
from grpo_guard.train import iterate
from grpo_guard.types import Condition

NOTHING = Condition(tokens=torch.zeros(4, 1, 1), pooled=torch.zeros(4, 4))
START = torch.tensor(0.6)


def to_a_point(x, t, condition):
    """Return the velocity of data that is one point, 3 everywhere; any solver solves it exactly."""
    return (x - 3) / t.reshape(-1, 1, 1, 1)


def to_a_gaussian(x, t, condition):
    """Return the velocity of data N(0, 1): the ODE goes from x_t to x_t / sqrt((1-t)^2 + t^2)."""
    t = t.reshape(-1, 1, 1, 1)
    return x * (2 * t - 1) / ((1 - t) ** 2 + t**2)


def times_of(solver, start):
    """Return the times at which a solver calls the policy, from a start to 0."""
    times = []

    def policy(x, t, condition):
        times.append(t[0].item())
        return to_a_point(x, t, condition)

    solver.finish(policy, torch.randn(4, *SHAPE), torch.tensor(start), NOTHING)
    return times


def shifted(shift, even):
    """Return MixGRPO's times: equal ones, shifted."""
    return [shift * u / (1 + (shift - 1) * u) for u in even]


@pytest.mark.parametrize("shift", [1.0, 1.88, 3.0])
def test_times_are_equal_before_the_shift(shift):
    """The trained steps end at 13 of 25 before the shift; the solver takes four more."""
    (start,) = shifted(shift, [0.52])
    wanted = shifted(shift, [0.52, 0.39, 0.26, 0.13])
    assert times_of(Dpm(steps=4, shift=shift), start) == pytest.approx(wanted, rel=1e-6)


def test_times_go_from_the_start_to_zero():
    times = Dpm(steps=3, shift=3.0).times(0.75)
    assert times.tolist() == pytest.approx([0.75, 0.6, 0.375, 0], rel=1e-6)
    assert Dpm(steps=1, shift=3.0).times(1.0).tolist() == [1, 0]


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_solver_reaches_a_point(steps, shift, generator):
    x = torch.randn(4, *SHAPE, generator=generator)
    end = Dpm(steps=steps, shift=shift).finish(to_a_point, x, START, NOTHING)
    assert torch.allclose(end, torch.full_like(x, 3), atol=1e-4)


@pytest.mark.parametrize("steps", [3, 6, 12])
def test_a_solver_is_closer_than_euler(steps, generator):
    x = torch.randn(4, *SHAPE, generator=generator)
    wanted = x / (0.4**2 + 0.6**2) ** 0.5
    euler = x
    for now, after in itertools.pairwise(torch.linspace(0.6, 0, steps + 1)):
        euler = euler + (after - now) * to_a_gaussian(euler, now.expand(4), NOTHING)
    end = Dpm(steps=steps, shift=1.0).finish(to_a_gaussian, x, START, NOTHING)
    assert (end - wanted).abs().max() < 0.6 * (euler - wanted).abs().max()


def test_the_trained_steps_stay_as_they_are():
    sde = Flow(level=0.7, window=Window(first=0, last=2))
    long, short = (
        draw_trajectory(prepare(experiment(sde=sde, final_steps=final_steps)))
        for final_steps in (Euler(), Dpm(steps=2, shift=3.0))
    )
    assert long.x.shape[1] == 6
    assert short.x.shape[1] == 3
    assert torch.equal(long.x[:, :3], short.x)
    assert torch.equal(long.sample, long.x[:, -1])
    assert not torch.allclose(short.sample, short.x[:, -1], atol=0.1)
    assert torch.equal(
        transitions(long, torch.zeros(32)).step, transitions(short, torch.zeros(32)).step
    )


def test_an_iteration_that_ends_in_the_solver():
    sde = Flow(level=0.7, window=Window(first=0, last=2))
    exp = experiment(sde=sde, final_steps=Dpm(steps=2, shift=3.0))
    _, metrics = iterate(prepare(exp), 0)
    assert {key[-2:] for key in metrics if key.startswith("grad_share")} == {"00", "01"}


def test_no_steps_are_refused():
    with pytest.raises(ConfigError, match=r"steps=0 is not positive; 2 to 4 are usual"):
        Dpm(steps=0, shift=3.0)


def test_a_shift_of_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"shift=0\.0 is not positive; give that of the check"):
        Dpm(steps=3, shift=0.0)
