"""Weights of the denoising steps, against their formulas."""

import dataclasses

import torch

from grpo_guard.clipping.weight import (
    beta_over_dt,
    earlier_half,
    inverse_dt,
    inverse_gain,
    later_half,
    std,
    uniform,
)
from grpo_guard.sde import schedule
from grpo_guard.sde.cps import Cps
from grpo_guard.sde.dance import Dance
from grpo_guard.sde.flow import Flow
from grpo_guard.sde.window import Window
from grpo_guard.types import map_tensors

FLOW = Flow(level=0.7, window=Window())
SDES = (FLOW, Dance(level=0.3, window=Window()), Cps(level=0.7, window=Window()))
ONES = torch.ones(10, dtype=torch.float64)


def make_steps(sde, times):
    """Return the schedule in float64."""
    steps = schedule(sde, times)
    return map_tensors(steps, lambda x: x.double() if x.is_floating_point() else x)


def test_weights(sd35):
    steps = make_steps(FLOW, sd35)
    dt = steps.t - steps.t_next
    assert torch.equal(uniform(steps), ONES)
    assert abs(std(steps)[:9].mean().item() - 1) < 1e-12
    assert torch.allclose(std(steps)[:9] / std(steps)[0], steps.std[:9] / steps.std[0])
    assert torch.allclose(inverse_dt(steps) * dt, ONES)
    # Flow at level 0.7 has beta = 1 + 0.7^2 / 2 at every step but the first and the last.
    assert torch.allclose((beta_over_dt(steps) * dt)[1:9], 1.245 * ONES[1:9])
    assert torch.allclose(inverse_gain(steps) * dt, 1 / (beta_over_dt(steps) * dt))


def test_the_inverse_gain_equalises_every_sde(sd35):
    """RatioNorm's gradient with respect to the velocity is gain * eps / D."""
    for sde in SDES:
        steps = make_steps(sde, sd35)
        dt = steps.t - steps.t_next
        assert torch.allclose(inverse_gain(steps) * steps.v_gain.abs(), ONES)
        beta = beta_over_dt(steps) * dt
        assert torch.allclose(beta, 1 / (inverse_gain(steps) * dt))


def test_weights_are_positive_whatever_the_sign_of_the_gain(sd35):
    steps = make_steps(FLOW, sd35)
    turned = dataclasses.replace(steps, v_gain=-steps.v_gain)
    for weight in (beta_over_dt, inverse_gain):
        assert torch.equal(weight(turned), weight(steps))
        assert (weight(turned)[:9] > 0).all()


def test_halves_share_the_trained_steps(sd35):
    """The earlier half of nine trained steps has five; each half of a window of four has two."""
    whole = make_steps(FLOW, sd35)
    assert earlier_half(whole).tolist() == [1] * 5 + [0] * 5
    assert later_half(whole).tolist() == [0] * 5 + [1] * 5
    window = make_steps(Flow(level=0.7, window=Window(first=2, last=6)), sd35)
    early, late = (weight(window)[window.trained].tolist() for weight in (earlier_half, later_half))
    assert (early, late) == ([1, 1, 0, 0], [0, 0, 1, 1])
