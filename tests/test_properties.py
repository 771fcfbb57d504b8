"""Properties of steps, ratios and objectives, over shapes, dtypes, levels and schedules."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import apply_objective

from grpo_guard.clipping.clip import Clip
from grpo_guard.clipping.dppo import Dppo
from grpo_guard.clipping.fixed import Fixed
from grpo_guard.clipping.weight import inverse_dt, std, uniform
from grpo_guard.gaussian import advance, drift, trailing
from grpo_guard.ratio import (
    log_ratio_mean,
    log_ratio_norm,
    log_ratio_norm_batch,
    log_ratio_raw,
    log_ratio_velocity,
)
from grpo_guard.sde import schedule
from grpo_guard.sde.cps import Cps
from grpo_guard.sde.dance import Dance
from grpo_guard.sde.flow import Flow
from grpo_guard.sde.window import Window
from grpo_guard.types import Rows, Step, map_tensors

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=3)
DTYPES = st.sampled_from([torch.float32, torch.float64])
RATIOS = st.sampled_from(
    [log_ratio_raw, log_ratio_mean, log_ratio_norm, log_ratio_norm_batch, log_ratio_velocity]
)
WEIGHTS = st.sampled_from([uniform, std, inverse_dt])
SEEDS = st.integers(0, 2**31)
quick = settings(max_examples=40)


@st.composite
def schedules(draw):
    """Draw a schedule of 2 to 12 steps: any SDE and noise level, shifted by 1 to 6, any dtype."""
    family = draw(st.sampled_from([Flow, Dance, Cps]))
    level = draw(st.floats(0.05, 0.95))
    count = draw(st.integers(2, 12))
    shift = draw(st.floats(1, 6))
    dtype = draw(DTYPES)
    t = torch.linspace(1, 0, count + 1, dtype=torch.float64)
    t = shift * t / (1 + (shift - 1) * t)
    steps = schedule(family(level=level, window=Window()), t)
    return map_tensors(steps, lambda x: x.to(dtype) if x.is_floating_point() else x)


def move_rows(steps, shape, seed, size):
    """Draw 7 rows of random trained steps, then move their velocity by `size`.

    Returns the step of each row, the drift, and (old means, new means, noise).
    """
    random = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, len(steps) - 1, (7,), generator=random)
    at = steps[rows]
    x, v, dv, eps = torch.randn(4, 7, *shape, generator=random, dtype=torch.float64).to(at.t.dtype)
    old, new = (trailing(at.x_gain, x) * x + trailing(at.v_gain, x) * w for w in (v, v + size * dv))
    gain = at.v_gain.abs()
    x_next = advance(Step(mean=old, std=at.std, gain=gain), eps)
    return rows, drift(Step(mean=new, std=at.std, gain=gain), x_next, eps), (old, new, eps)


@quick
@given(steps=schedules(), shape=SHAPES, seed=SEEDS, ratio=RATIOS)
def test_an_unmoved_policy_has_ratio_one_and_no_loss(steps, shape, seed, ratio):
    at, still, _ = move_rows(steps, shape, seed, 0.0)
    assert not ratio(still).any()
    clip = Clip(
        name="tried", ratio=ratio, weight=inverse_dt, adaptation=Fixed(), high=1e-4, low=1e-4
    )
    rows = Rows(sample=at, step=at, advantage=torch.ones(7))
    result = apply_objective(clip, still, rows, steps)
    assert not result.loss.any()
    assert not (result.high | result.low).any()


@quick
@given(steps=schedules(), shape=SHAPES, seed=SEEDS, size=st.floats(1e-3, 1))
def test_ratios_are_gaussian_likelihoods(steps, shape, seed, size):
    at, moved, drawn = move_rows(steps, shape, seed, size)
    old, new, eps = (x.double().flatten(1) for x in drawn)
    std = steps.std[at].double()[:, None]
    x_next = old + std * eps
    normal = torch.distributions.Normal
    log_new, log_old = (normal(mean, std).log_prob(x_next).mean(1) for mean in (new, old))
    # The drift d is a difference of rounded latents: it errs by about the rounding of the largest.
    # log r = mean(eps d) / s - mean(d^2) / 2 s^2 turns an error of d into (|eps| + |d| / s) / s
    # times as much. The ones stand for the rounding of the reference itself.
    largest = (x_next.abs().maximum((new + std * eps).abs()) / std).amax(1)
    slope = eps.square().mean(1).sqrt() + ((new - old) / std).square().mean(1).sqrt()
    rounding = 4 * torch.finfo(steps.t.dtype).eps * (1 + largest) * (1 + slope)
    error = (log_ratio_raw(moved).double() - (log_new - log_old)).abs()
    assert (error <= rounding).all()


@quick
@given(steps=schedules(), shape=SHAPES, seed=SEEDS, size=st.floats(1e-3, 1))
def test_ratios_of_a_row_differ_by_their_definitions(steps, shape, seed, size):
    at, moved, _ = move_rows(steps, shape, seed, size)
    s = steps.std[at]
    gain = steps.v_gain[at].abs()
    bias = moved.square / (2 * s.square())
    eps = torch.finfo(s.dtype).eps
    raw = log_ratio_raw(moved)
    mean = log_ratio_mean(moved)
    norm = log_ratio_norm(moved)
    assert (raw <= mean).all()
    # A bias that is much larger than the log-ratio takes the last digits of their difference.
    assert ((raw + bias - mean).abs() <= 2 * eps * (bias + mean.abs())).all()
    assert torch.allclose(s * mean, norm, rtol=2 * eps, atol=0)
    assert torch.allclose(gain * log_ratio_velocity(moved), norm, rtol=2 * eps, atol=0)


@quick
@given(
    steps=schedules(),
    shape=SHAPES,
    seed=SEEDS,
    ratio=RATIOS,
    weight=WEIGHTS,
    size=st.floats(1e-4, 1),
)
def test_clipping_never_lowers_the_loss(steps, shape, seed, ratio, weight, size):
    """PPO's minimum: the loss is the unclipped one inside the clip range and no less outside."""
    at, moved, _ = move_rows(steps, shape, seed, size)
    a = torch.randn(7, generator=torch.Generator().manual_seed(seed)).to(steps.t.dtype)
    clip = Clip(name="tried", ratio=ratio, weight=weight, adaptation=Fixed(), high=1e-4, low=2e-4)
    result = apply_objective(clip, moved, Rows(sample=at, step=at, advantage=a), steps)
    free = -weight(steps)[at] * (torch.expm1(ratio(moved)) * a)
    assert (result.loss >= free).all()
    inside = ~(result.high | result.low)
    assert torch.equal(result.loss[inside], free[inside])
    assert not (result.high & result.low).any()


@quick
@given(
    steps=schedules(),
    shape=SHAPES,
    seed=SEEDS,
    ratio=RATIOS,
    size=st.floats(1e-3, 1),
    share=st.floats(0.1, 10),
)
def test_dppo_only_drops(steps, shape, seed, ratio, size, share):
    """DPPO changes a row's loss only to 0, and only if the row has left the trust region."""
    at, moved, _ = move_rows(steps, shape, seed, size)
    a = torch.randn(7, generator=torch.Generator().manual_seed(seed)).to(steps.t.dtype)
    divergence = share * float((moved.square / (2 * moved.std.square())).mean())
    dppo = Dppo(name="tried", ratio=ratio, weight=uniform, divergence=divergence)
    result = apply_objective(dppo, moved, Rows(sample=at, step=at, advantage=a), steps)
    free = -torch.expm1(ratio(moved)) * a
    kept = result.loss != 0
    assert torch.equal(result.loss[kept], free[kept])
    assert ((result.high | result.low) >= ~kept).all()
    assert (result.loss >= torch.minimum(free, torch.zeros(()))).all()


@quick
@given(steps=schedules())
def test_all_steps_but_the_last_are_stochastic_and_trained(steps):
    assert steps.trained[:-1].all()
    assert not steps.trained[-1]
    assert (steps.std[:-1] > 0).all()
    assert (steps.v_gain < 0).all()
    for gain in (steps.x_gain, steps.v_gain, steps.std):
        assert gain.isfinite().all()


@quick
@given(level=st.floats(0.05, 1.0), t=st.floats(0.05, 0.95), part=st.floats(0.01, 0.9))
def test_cps_keeps_the_scale_of_noise(level, t, part):
    """The noise that CPS keeps and the noise it adds make up that of the next time.

    This holds at every level (arXiv 2509.05952).
    """
    now = torch.tensor([t], dtype=torch.float64)
    after = torch.tensor([t * part], dtype=torch.float64)
    x_gain, v_gain, s = Cps(level=level, window=Window()).gains(now, after)
    # Gain of the noise x_1 in the mean, because x_t = (1-t) x_0 + t x_1 and v = x_1 - x_0.
    kept = x_gain * now + v_gain
    assert math.hypot(kept.item(), s.item()) == pytest.approx(after.item(), rel=1e-9)


@quick
@given(dt=st.floats(1e-6, 1e-4), t=st.floats(0.1, 0.9), level=st.floats(0.1, 1.0))
def test_diffusions_keep_the_variance_of_gaussian_data(dt, t, level):
    """One small step keeps Var(x_t) = (1-t)^2 + t^2 to first order.

    The data are N(0, 1), so that the velocity is linear in x.
    """
    now = torch.tensor([t], dtype=torch.float64)
    after = torch.tensor([t - dt], dtype=torch.float64)
    variance_now = (1 - t) ** 2 + t**2
    slope = (2 * t - 1) / variance_now  # v = slope * x
    for family in (Flow, Dance):
        x_gain, v_gain, s = family(level=level, window=Window()).gains(now, after)
        variance = (x_gain + v_gain * slope) ** 2 * variance_now + s**2
        expected = (1 - t + dt) ** 2 + (t - dt) ** 2
        assert abs(variance.item() - expected) < 100 * (dt / t) ** 2
