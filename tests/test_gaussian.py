"""The closed forms are the differences of log-probabilities that they replace, without their rounding."""

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


def moved(d, eps, *, std=0.3, gain=0.1, dtype=torch.float64):
    """The drift of steps whose means have moved by d since they made x_next from eps, with all that went into it."""
    old = torch.linspace(-1, 1, d.numel(), dtype=dtype).reshape(d.shape)
    new = old + d.to(dtype)
    s, g = (torch.full((len(d),), value, dtype=dtype) for value in (std, gain))
    x_next = advance(Step(mean=old, std=s, gain=g), eps.to(dtype))
    return drift(Step(mean=new, std=s, gain=g), x_next, eps.to(dtype)), old, new, x_next


def exact(row):
    return [Fraction(value) for value in row.flatten().tolist()]


def log_probability(x, mean, std):
    """log N(x; mean, std) of exact numbers, up to its normaliser, mean-reduced."""
    return -sum((a - b) ** 2 for a, b in zip(x, mean, strict=True)) / (2 * std**2 * len(x))


def subtracted(old, new, x_next, std):
    """log r of one row as the difference it is defined as, in exact arithmetic."""
    return log_probability(exact(x_next), exact(new), std) - log_probability(
        exact(x_next), exact(old), std
    )


@pytest.mark.parametrize(
    ("size", "tolerance"), [(1.0, 1e-12), (0.1, 1e-12), (1e-3, 1e-10), (1e-6, 1e-7)]
)
@pytest.mark.parametrize("std", [0.006, 0.2, 0.7])
def test_closed_forms_are_differences_of_log_probabilities(size, tolerance, std, generator):
    d, eps = torch.randn(2, 2, 3, 5, 2, generator=generator, dtype=torch.float64)
    measured, old, new, x_next = moved(size * std * d, eps, std=std, gain=0.25)
    for row in range(len(d)):
        raw = subtracted(old[row], new[row], x_next[row], Fraction(std))
        bias = -log_probability(exact(new[row]), exact(old[row]), Fraction(std))
        wanted = {"raw": raw, "mean": raw + bias, "norm": Fraction(std) * (raw + bias)}
        wanted["velocity"] = wanted["norm"] * 4
        for name, ratio in RATIOS.items():
            assert ratio(measured)[row].item() == pytest.approx(
                float(wanted[name]), rel=tolerance
            ), name


def test_ratio_norm_in_float32_resolves_what_the_clip_range_needs(generator):
    eps = torch.randn(4, 65_536, generator=generator)
    old = torch.randn(eps.shape, generator=generator)
    new = old + 1e-3 * torch.randn(eps.shape, generator=generator)
    s = torch.full((4,), 0.2)
    x_next = advance(Step(mean=old, std=s, gain=s), eps)
    exact = (eps.double() * (new.double() - old.double())).mean(1)
    closed = log_ratio_norm(drift(Step(mean=new, std=s, gain=s), x_next, eps))
    assert (closed - exact).abs().max() < 1e-9
    logs = [-(x_next - mean).square().mean(1) / (2 * s.square()) for mean in (old, new)]
    subtracted = s * (logs[1] - logs[0] + (new - old).square().mean(1) / (2 * s.square()))
    assert (subtracted - exact).abs().max() > 2e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", RATIOS.values(), ids=RATIOS)
def test_an_unmoved_policy_has_ratio_exactly_one(ratio, dtype, generator):
    eps = torch.randn(3, 2, 5, generator=generator)
    measured, *_ = moved(torch.zeros(3, 2, 5), eps, dtype=dtype)
    assert torch.equal(ratio(measured), torch.zeros(3, dtype=dtype))


@pytest.mark.parametrize("rms", [0.02, 0.1, 0.5])
def test_moments_of_the_log_ratios(rms, generator):
    rows, dimensions, s = 20_000, 16, 0.4
    d = torch.randn(dimensions, generator=generator, dtype=torch.float64)
    d = (rms * d / d.square().mean().sqrt()).expand(rows, -1)
    eps = torch.randn(rows, dimensions, generator=generator, dtype=torch.float64)
    measured, *_ = moved(d, eps, std=s)
    expected = {
        "raw": (-(rms**2) / (2 * s**2), rms / s),
        "mean": (0, rms / s),
        "norm": (0, rms),
        "velocity": (0, rms / 0.1),
    }
    for name, (mean, spread) in expected.items():
        values, spread = RATIOS[name](measured), spread / dimensions**0.5
        assert values.mean().item() == pytest.approx(mean, abs=4 * spread / rows**0.5), name
        assert values.std().item() == pytest.approx(spread, rel=4 / (2 * rows) ** 0.5), name


@pytest.fixture
def replay_steps(sd35, generator):
    """Every trained step of SD3.5's ten, moved by the same change of velocity under the same noise."""
    steps = schedule(Flow(level=0.7, window=Window()), sd35)[:9]
    dv, eps = torch.randn(2, 256, generator=generator, dtype=torch.float64)
    gain, std = steps.v_gain.double(), steps.std.double()
    mean = trailing(gain, dv.expand(9, -1)) * 1e-3 * dv
    step = Step(mean=mean, std=std, gain=gain.abs())
    return steps, drift(step, trailing(std, mean) * eps, eps.expand(9, -1))


def test_the_velocity_ratio_is_equal_on_every_step(replay_steps):
    ratio = log_ratio_velocity(replay_steps[1])
    assert ratio.tolist() == pytest.approx([ratio[0].item()] * 9, rel=1e-10)


def test_ratio_norm_spreads_as_dt(replay_steps):
    steps, measured = replay_steps
    dt = steps.t - steps.t_next
    share = (log_ratio_norm(measured) / dt)[1:]
    assert share.tolist() == pytest.approx([share[0].item()] * 8, rel=1e-5)
    assert (log_ratio_norm(measured)[8] / log_ratio_norm(measured)[0]).item() == pytest.approx(
        8.4, rel=0.01
    )


def test_drift_counts_dimensions_and_trailing_adds_axes():
    measured, *_ = moved(torch.ones(2, 3, 4), torch.ones(2, 3, 4))
    assert measured.dimensions == 12
    assert measured.along.tolist() == pytest.approx([1, 1])
    assert measured.square.tolist() == pytest.approx([1, 1])
    assert trailing(torch.ones(2), torch.ones(2, 3, 4)).shape == (2, 1, 1)
