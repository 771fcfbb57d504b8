"""Steps: a table of numbers, the published formulas, the marginals that they keep, the window."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from grpo_guard.schema import ConfigError
from grpo_guard.sde import schedule
from grpo_guard.sde.cps import Cps
from grpo_guard.sde.dance import Dance
from grpo_guard.sde.flow import Flow
from grpo_guard.sde.ode import Ode
from grpo_guard.sde.window import Random, Sliding, Window

# step, t, dt, s, and the scale of the gradient wrt velocity: |v_gain| / s, |v_gain|, |v_gain| / dt
TABLE = """
0  1.0000  .0399  .700   .057  .040  1.000
1   .9601  .0468  .743   .078  .058  1.245
2   .9133  .0557  .536   .129  .069  1.245
3   .8577  .0673  .446   .188  .084  1.245
4   .7904  .0831  .392   .264  .103  1.245
5   .7073  .1051  .353   .371  .131  1.245
6   .6022  .1373  .319   .536  .171  1.245
7   .4649  .1868  .282   .825  .233  1.245
8   .2780  .2691  .225  1.487  .335  1.245
"""


@pytest.fixture(scope="module")
def times():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    return scheduler.sigmas


@pytest.mark.parametrize("shift", [1.0, 1.18, 1.43, 1.91, 2.61, 3.0])
def test_the_first_step_is_finite_at_every_shift(shift):
    """The schedulers of some shifts begin at .99999994 instead of 1."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(10)
    steps = schedule(Flow(level=0.7, window=Window()), scheduler.sigmas)
    t_next = float(scheduler.sigmas[1])
    assert float(steps.std[0]) == pytest.approx(0.7 * math.sqrt(1.0), rel=1e-5)
    assert float(steps.x_gain[0]) == pytest.approx(1 - 0.49 / 2, rel=1e-5)
    assert float(steps.v_gain[0]) == pytest.approx(-(1 - t_next), rel=1e-5)


@pytest.mark.parametrize("row", TABLE.split("\n")[1:-1], ids=lambda row: f"step{row[0]}")
def test_the_numbers_of_sd35(row, times):
    step, *printed = row.split()
    at = schedule(Flow(level=0.7, window=Window()), times)[[int(step)]]
    dt, gain = at.t - at.t_next, at.v_gain.abs()
    for value, digits in zip(
        (at.t, dt, at.std, gain / at.std, gain, gain / dt), printed, strict=True
    ):
        half = 0.5 * 10.0 ** -len(digits.split(".")[1])
        assert value.item() == pytest.approx(float(digits), abs=1.001 * half)


def test_the_fixture_of_sd35_times_agrees_with_the_scheduler(times, sd35):
    assert torch.allclose(times.double(), sd35, rtol=1e-6)


def flow(x, v, t, t_next, a, t1):
    """Return mean and std of Flow-GRPO (arXiv:2505.05470); t1 is the schedule's second time."""
    dt = t - t_next
    sig = a * math.sqrt(t / (1 - (t1 if t == 1 else t)))
    drift = v * (1 + sig**2 * (1 - t) / (2 * t))
    return x * (1 - sig**2 * dt / (2 * t)) - drift * dt, sig * math.sqrt(dt)


def dance(x, v, t, t_next, a, t1):
    """Return mean and std of DanceGRPO (arXiv:2505.07818)."""
    dt, x0_hat = t - t_next, x - t * v
    return x - v * dt - (a**2 / 2) * (x - (1 - t) * x0_hat) / t**2 * dt, a * math.sqrt(dt)


def cps(x, v, t, t_next, a, t1):
    """Return mean and std of Flow-CPS (arXiv:2509.05952)."""
    x0_hat, x1_hat = x - t * v, x + (1 - t) * v
    s = t_next * math.sin(a * math.pi / 2)
    return (1 - t_next) * x0_hat + math.sqrt(t_next**2 - s**2) * x1_hat, s


def ode(x, v, t, t_next, a, t1):
    return x - v * (t - t_next), 0.0


FAMILIES = {"flow": (Flow, flow), "dance": (Dance, dance), "cps": (Cps, cps)}


@pytest.mark.parametrize("family", FAMILIES)
@given(level=st.floats(0.05, 1), steps=st.integers(2, 30), shift=st.floats(1, 6))
def test_gains_are_the_published_formulas(family, level, steps, shift):
    component, formula = FAMILIES[family]
    compare(component(level=level, window=Window()), formula, level, steps, shift)


@given(steps=st.integers(2, 30), shift=st.floats(1, 6))
def test_the_ode_is_eulers_method(steps, shift):
    compare(Ode(), ode, 0, steps, shift)


def compare(sde, formula, level, steps, shift):
    """Compare gains with a formula on random x and v, at every step of a schedule from 1 to 0."""
    u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    times = shift * u / (1 + (shift - 1) * u)
    x, v = torch.randn(
        2, steps, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(steps)
    )
    x_gain, v_gain, std = sde.gains(times[:-1], times[1:])
    for i in range(steps):
        mean, s = formula(x[i], v[i], times[i].item(), times[i + 1].item(), level, times[1].item())
        assert torch.allclose(x_gain[i] * x[i] + v_gain[i] * v[i], mean, rtol=1e-12, atol=1e-12)
        assert std[i].item() == pytest.approx(s, rel=1e-12)


MEAN = torch.tensor([[1.5], [-0.5], [0.0]]).double()
SPREAD = torch.tensor([[0.4], [1.3], [1.0]]).double()


def velocity(x, t):
    """Return E[x_1 - x_0 | x_t = x] for data N(MEAN, SPREAD^2)."""
    variance = ((1 - t) * SPREAD) ** 2 + t**2
    return (t - (1 - t) * SPREAD**2) / variance * (x - (1 - t) * MEAN) - MEAN


@pytest.mark.parametrize(
    "sde", [Flow(level=0.7, window=Window()), Dance(level=0.3, window=Window())], ids=str
)
def test_noise_keeps_the_marginals_of_gaussian_data(sde, generator):
    count, times = 20_000, torch.linspace(1, 0, 201, dtype=torch.float64)
    x = torch.randn(3, count, generator=generator, dtype=torch.float64)
    for t, x_gain, v_gain, s in zip(times, *sde.gains(times[:-1], times[1:]), strict=False):
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        x = x_gain * x + v_gain * velocity(x, t) + s * noise
    assert ((x.mean(1, keepdim=True) - MEAN).abs() < 4 * SPREAD / count**0.5).all()
    assert ((x.std(1, keepdim=True) / SPREAD - 1).abs() < 4 / (2 * count) ** 0.5).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_without_noise_every_family_is_the_ode(family, sd35):
    t, t_next = sd35[:-1], sd35[1:]
    gains = FAMILIES[family][0](level=1e-7, window=Window()).gains(t, t_next)
    for stochastic, deterministic in zip(gains, Ode().gains(t, t_next), strict=True):
        assert torch.allclose(stochastic, deterministic, rtol=0, atol=1e-6)


@given(level=st.floats(0.01, 1))
def test_cps_keeps_the_coefficients_of_image_and_noise(level):
    times = torch.linspace(1, 0, 8, dtype=torch.float64)
    t, t_next = times[:-1], times[1:]
    x_gain, v_gain, s = Cps(level=level, window=Window()).gains(t, t_next)
    image, noise = x_gain * (1 - t) - v_gain, x_gain * t + v_gain
    assert torch.allclose(image, 1 - t_next, atol=1e-12)
    assert torch.allclose(noise**2 + s**2, t_next**2, atol=1e-12)


WINDOWS = [
    (0, None, range(9)),
    (2, 5, range(2, 5)),
    (4, None, range(4, 9)),
    (0, 1, range(1)),
    (8, 9, [8]),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("first", "last", "inside"), WINDOWS)
def test_steps_outside_the_window_run_the_ode_and_are_not_trained(
    family, first, last, inside, sd35
):
    sde = FAMILIES[family][0](level=0.6, window=Window(first=first, last=last))
    mixed, ode_steps = schedule(sde, sd35), schedule(Ode(), sd35)
    trained = mixed.trained
    assert trained.nonzero().flatten().tolist() == list(inside)
    assert (mixed.std[trained] > 0).all()
    assert torch.equal(mixed.t, sd35[:-1].float())
    assert torch.equal(mixed.t_next, sd35[1:].float())
    gains = sde.gains(sd35[:-1], sd35[1:])
    for name, stochastic in zip(("x_gain", "v_gain", "std"), gains, strict=True):
        values = getattr(mixed, name)
        assert torch.equal(values[trained], stochastic.float()[trained])
        assert torch.equal(values[~trained], getattr(ode_steps, name)[~trained])


@pytest.mark.parametrize("steps", [2, 3, 10, 28])
def test_the_last_step_is_never_trained(steps):
    trained = Window().steps(steps, 0, 0)
    assert trained[:-1].all()
    assert not trained[-1]


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Window(first=-1), "first=-1 is negative; count steps from 0"),
        (lambda: Window(first=3, last=3), "last=3 leaves no step; choose one above 3"),
        (lambda: Window(first=0, last=10).check(10), "last=10 includes the last of 10 steps"),
        (lambda: Window(first=9).check(10), "first=9 leaves no trained step of 10"),
        (
            lambda: Sliding(length=1, stride=1, hold=1, within=Window(first=9)).check(10),
            r"^sde\.window\.within\.first=9 leaves no trained step of 10",
        ),
        (lambda: Flow(level=0, window=Window()), "level=0 is not positive"),
        (lambda: Dance(level=-0.1, window=Window()), "level=-0.1 is not positive"),
        (lambda: Cps(level=1.5, window=Window()), r"level=1.5 is outside \(0, 1\]"),
        (lambda: Cps(level=math.nan, window=Window()), r"level=nan is outside \(0, 1\]"),
    ],
)
def test_refusals(make, line):
    with pytest.raises(ConfigError, match=line):
        make()


@pytest.mark.parametrize("steps", [2, 10])
def test_windows_that_fit(steps):
    Window().check(steps)
    Window(first=0, last=steps - 1).check(steps)


def places(window, count, iterations):
    """Return the first step of the window in every iteration."""
    masks = [window.steps(count, 0, iteration) for iteration in range(iterations)]
    for mask in masks:
        first = mask.nonzero()[0].item()
        assert mask.sum() == window.size(count)
        assert mask[first : first + window.size(count)].all()
        assert not mask[-1]
    return [mask.nonzero()[0].item() for mask in masks]


def test_a_random_window_goes_everywhere_and_repeats():
    window = Random(length=3, within=Window(first=1))
    firsts = places(window, 10, 400)
    assert set(firsts) == set(range(1, 7))
    assert all(40 < firsts.count(place) < 100 for place in range(1, 7))
    assert firsts == places(window, 10, 400)
    assert firsts[:8] == [5, 1, 5, 6, 3, 4, 1, 6], (
        "runs with a random window can be repeated by later versions"
    )
    assert firsts != [window.steps(10, 1, i).nonzero()[0].item() for i in range(400)]


@pytest.mark.parametrize(
    ("length", "stride", "hold", "firsts"),
    [
        (4, 1, 2, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 0, 0]),
        (4, 2, 1, [0, 2, 4, 5, 0, 2, 4, 5]),
        (4, 5, 1, [0, 5, 0, 5]),
        (9, 1, 1, [0, 0, 0]),
    ],
)
def test_a_sliding_window(length, stride, hold, firsts):
    window = Sliding(length=length, stride=stride, hold=hold, within=Window())
    assert places(window, 10, len(firsts)) == firsts


@pytest.mark.parametrize(
    "window",
    [
        Random(length=9, within=Window(first=1)),
        Sliding(length=9, stride=1, hold=1, within=Window(last=8)),
    ],
)
def test_a_window_longer_than_its_range_is_refused(window):
    with pytest.raises(
        ConfigError,
        match=r"sde.window.length=9 is more than the 8 steps that it moves in; give less",
    ):
        window.check(10)


def test_a_window_may_fill_its_range_but_not_leave_the_schedule():
    for within, steps in ((Window(first=1), 10), (Window(last=8), 9)):
        Random(length=8, within=within).check(steps)
        Sliding(length=8, stride=1, hold=1, within=within).check(steps)
    with pytest.raises(ConfigError, match=r"sde.window.within.last=9 includes the last of 9 steps"):
        Random(length=2, within=Window(last=9)).check(9)


def test_the_ode_has_no_noise():
    assert Ode().level == 0


@pytest.mark.parametrize("key", ["length", "stride", "hold"])
def test_windows_that_never_move_are_refused(key):
    with pytest.raises(ConfigError, match=f"{key}=0 is not positive"):
        Sliding(**{"length": 1, "stride": 1, "hold": 1, "within": Window()} | {key: 0})
