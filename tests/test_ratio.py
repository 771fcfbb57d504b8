"""The closed forms equal the differences of log-probabilities, without their rounding."""

from fractions import Fraction

import pytest
import torch

from grpo_guard.gaussian import advance, drift, trailing
from grpo_guard.ratio import log_ratio_mean, log_ratio_norm, log_ratio_raw, log_ratio_velocity
from grpo_guard.sde import schedule
from grpo_guard.sde.flow import Flow
from grpo_guard.sde.window import Window
from grpo_guard.types import Step

RATIOS = {
    "raw": log_ratio_raw,
    "mean": log_ratio_mean,
    "norm": log_ratio_norm,
    "velocity": log_ratio_velocity,
}


def move_means(d, eps, *, std=0.3, gain=0.1, dtype=torch.float64):
    """Draw next latents with noise `eps`, then move the means by `d`.

    Returns the drift, the old means, the new means and the next latents.
    """
    old = torch.linspace(-1, 1, d.numel(), dtype=dtype).reshape(d.shape)
    new = old + d.to(dtype)
    stds = torch.full((len(d),), std, dtype=dtype)
    gains = torch.full((len(d),), gain, dtype=dtype)
    x_next = advance(Step(mean=old, std=stds, gain=gains), eps.to(dtype))
    measured = drift(Step(mean=new, std=stds, gain=gains), x_next, eps.to(dtype))
    return measured, old, new, x_next


def as_fractions(row):
    return [Fraction(value) for value in row.flatten().tolist()]


def log_probability(x, mean, std):
    """Return log N(x; mean, std) without its normaliser, as an exact mean over dimensions."""
    return -sum((a - b) ** 2 for a, b in zip(x, mean, strict=True)) / (2 * std**2 * len(x))


def subtract_log_probabilities(old, new, x_next, std):
    """Return log r of one row as the difference by which it is defined, exactly."""
    x = as_fractions(x_next)
    return log_probability(x, as_fractions(new), std) - log_probability(x, as_fractions(old), std)


@pytest.mark.parametrize(
    ("size", "tolerance"), [(1.0, 1e-12), (0.1, 1e-12), (1e-3, 1e-10), (1e-6, 1e-7)]
)
@pytest.mark.parametrize("std", [0.006, 0.2, 0.7])
def test_closed_forms_are_differences_of_log_probabilities(size, tolerance, std, generator):
    """The means are rounded to float64 after they moved, so small moves have fewer digits."""
    d, eps = torch.randn(2, 2, 3, 5, 2, generator=generator, dtype=torch.float64)
    measured, old, new, x_next = move_means(size * std * d, eps, std=std, gain=0.25)
    s = Fraction(std)
    for row in range(len(d)):
        raw = subtract_log_probabilities(old[row], new[row], x_next[row], s)
        bias = -log_probability(as_fractions(new[row]), as_fractions(old[row]), s)
        expected = {"raw": raw, "mean": raw + bias, "norm": s * (raw + bias)}
        expected["velocity"] = expected["norm"] * 4
        for name, ratio in RATIOS.items():
            assert ratio(measured)[row].item() == pytest.approx(
                float(expected[name]), rel=tolerance
            ), name


def test_ratio_norm_in_float32_resolves_what_the_clip_range_needs(generator):
    """The published clip range is 2e-6; the subtraction errs by more than a thousandth of it."""
    eps = torch.randn(4, 65_536, generator=generator)
    old = torch.randn(eps.shape, generator=generator)
    new = old + 1e-3 * torch.randn(eps.shape, generator=generator)
    s = torch.full((4,), 0.2)
    x_next = advance(Step(mean=old, std=s, gain=s), eps)
    expected = (eps.double() * (new.double() - old.double())).mean(1)
    closed = log_ratio_norm(drift(Step(mean=new, std=s, gain=s), x_next, eps))
    assert (closed - expected).abs().max() < 1e-9
    logs = [-(x_next - mean).square().mean(1) / (2 * s.square()) for mean in (old, new)]
    subtracted = s * (logs[1] - logs[0] + (new - old).square().mean(1) / (2 * s.square()))
    assert (subtracted - expected).abs().max() > 2e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", RATIOS.values(), ids=RATIOS)
def test_an_unmoved_policy_has_ratio_exactly_one(ratio, dtype, generator):
    eps = torch.randn(3, 2, 5, generator=generator)
    measured, *_ = move_means(torch.zeros(3, 2, 5), eps, dtype=dtype)
    assert torch.equal(ratio(measured), torch.zeros(3, dtype=dtype))


@pytest.mark.parametrize("rms", [0.02, 0.1, 0.5])
def test_moments_of_the_log_ratios(rms, generator):
    rows, dimensions, s = 20_000, 16, 0.4
    d = torch.randn(dimensions, generator=generator, dtype=torch.float64)
    d = (rms * d / d.square().mean().sqrt()).expand(rows, -1)
    eps = torch.randn(rows, dimensions, generator=generator, dtype=torch.float64)
    measured, *_ = move_means(d, eps, std=s)
    expected = {
        "raw": (-(rms**2) / (2 * s**2), rms / s),
        "mean": (0, rms / s),
        "norm": (0, rms),
        "velocity": (0, rms / 0.1),
    }
    for name, (mean, spread_of_one_dimension) in expected.items():
        values = RATIOS[name](measured)
        spread = spread_of_one_dimension / dimensions**0.5
        # Tolerances are 4 standard errors.
        assert values.mean().item() == pytest.approx(mean, abs=4 * spread / rows**0.5), name
        assert values.std().item() == pytest.approx(spread, rel=4 / (2 * rows) ** 0.5), name


@pytest.fixture
def same_move(sd35, generator):
    """Return SD3.5's nine trained steps and their drift after the same move.

    The velocity of every step changes by the same amount, and every step drew the same noise.
    """
    steps = schedule(Flow(level=0.7, window=Window()), sd35)[:9]
    dv, eps = torch.randn(2, 256, generator=generator, dtype=torch.float64)
    gain = steps.v_gain.double()
    std = steps.std.double()
    mean = trailing(gain, dv.expand(9, -1)) * 1e-3 * dv
    step = Step(mean=mean, std=std, gain=gain.abs())
    return steps, drift(step, trailing(std, mean) * eps, eps.expand(9, -1))


def test_the_velocity_ratio_is_equal_on_every_step(same_move):
    _, measured = same_move
    ratio = log_ratio_velocity(measured)
    assert ratio.tolist() == pytest.approx([ratio[0].item()] * 9, rel=1e-10)


def test_ratio_norm_spreads_as_dt(same_move):
    steps, measured = same_move
    ratio = log_ratio_norm(measured)
    per_dt = (ratio / (steps.t - steps.t_next))[1:]
    assert per_dt.tolist() == pytest.approx([per_dt[0].item()] * 8, rel=1e-5)
    assert (ratio[8] / ratio[0]).item() == pytest.approx(8.4, rel=0.01)
