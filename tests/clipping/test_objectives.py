"""Objectives against the papers' formulas, written out again in float64.

Values and gradients must agree, and formulas that are nearly right must be caught.
"""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from toy import apply_objective

from grpo_guard.clipping.clip import Clip
from grpo_guard.clipping.dppo import Dppo
from grpo_guard.clipping.fixed import Fixed
from grpo_guard.clipping.weight import inverse_dt, uniform
from grpo_guard.gaussian import drift
from grpo_guard.ratio import log_ratio_mean, log_ratio_norm, log_ratio_raw, log_ratio_velocity
from grpo_guard.schema import ConfigError, record
from grpo_guard.sde import schedule
from grpo_guard.sde.cps import Cps
from grpo_guard.sde.dance import Dance
from grpo_guard.sde.flow import Flow
from grpo_guard.sde.window import Window
from grpo_guard.types import Drift, Rows, Schedule, Step, map_tensors

NAMES = sorted(
    {path.stem for path in (Path(__file__).parents[2] / "conf/clipping").glob("*.yaml")} - {"dppo"}
)
SDES = {
    "flow": Flow(level=0.7, window=Window()),
    "dance": Dance(level=0.3, window=Window()),
    "cps": Cps(level=0.7, window=Window()),
}
D = 256


@record
class Moves:
    """Rows of every trained step, before and after their velocities move.

    Their ratios lie within, beyond and far beyond the clip range, on both sides; their advantages
    have both signs.
    """

    steps: Schedule
    """All steps, in float64."""
    rows: Rows
    """The rows."""
    x: torch.Tensor
    """Latents of each row at the start of its step."""
    eps: torch.Tensor
    """Noise that its step drew."""
    v_old: torch.Tensor
    """Velocities of the old policy."""
    v: torch.Tensor
    """Velocities of the new policy."""

    def mean(self, v):
        """Return the mean of every row's step under velocities v."""
        at = self.rows.step
        return self.steps.x_gain[at, None] * self.x + self.steps.v_gain[at, None] * v


def to_double(value):
    return map_tensors(value, lambda x: x.double() if x.is_floating_point() else x)


def make_moves(sde, times, unit, distances=(-100, -3, -0.5, 0.5, 3, 100)):
    """Move rows of every trained step by each distance, in units of the clip range.

    `unit(steps)` is the mean(eps d) of each step that puts a log-ratio on the edge of the range.
    """
    random = torch.Generator().manual_seed(1)
    steps = to_double(schedule(sde, times))
    grid = [(step, far, sign) for step in range(9) for far in distances for sign in (-1.3, 0.7)]
    step, far, advantage = (torch.tensor(column) for column in zip(*grid, strict=True))
    x, eps, v, aside = torch.randn(4, len(grid), D, generator=random, dtype=torch.float64)
    # mean(eps along) is exactly 1, and a part of `along` is at right angles to the noise.
    along = eps / eps.square().mean(1, keepdim=True)
    along = along + 0.2 * (aside - along * (eps * aside).mean(1, keepdim=True))
    d = (far * unit(steps)[step])[:, None] * along
    rows = Rows(sample=torch.arange(len(grid)), step=step, advantage=advantage.double())
    return Moves(steps=steps, rows=rows, x=x, eps=eps, v_old=v, v=v + d / steps.v_gain[step, None])


def log_probability(x, mean, s):
    """Return a Gaussian's log-probability without its normaliser, as a mean over dimensions."""
    return -(x - mean).square().mean(1) / (2 * s.square())


def constant(dt, s):
    return torch.ones_like(s)


# Table 2 of the paper (arXiv 2510.22319) and our variants. Each has two functions:
# (log r, mean(d^2), s, |v_gain|) -> log-ratio, and (dt, s) -> weight w_t.
TABLE = {
    "vanilla": (lambda log_r, d2, s, gain: log_r, constant),
    "temp_reweight": (lambda log_r, d2, s, gain: log_r, lambda dt, s: s / s.mean()),
    "mean_revised": (lambda log_r, d2, s, gain: log_r + d2 / (2 * s**2), constant),
    "rationorm": (lambda log_r, d2, s, gain: s * (log_r + d2 / (2 * s**2)), constant),
    "guard": (lambda log_r, d2, s, gain: s * (log_r + d2 / (2 * s**2)), lambda dt, s: 1 / dt),
    "guard_upstream": (
        lambda log_r, d2, s, gain: s * (log_r + (d2 / (2 * s**2)).mean()),
        lambda dt, s: 1 / dt,
    ),
    "guard_velocity": (
        lambda log_r, d2, s, gain: s * (log_r + d2 / (2 * s**2)) / gain,
        constant,
    ),
}


# The mean(eps d) of each step at which an objective's log-ratio is 1.
UNITS = {
    "vanilla": lambda steps: steps.std,
    "temp_reweight": lambda steps: steps.std,
    "mean_revised": lambda steps: steps.std,
    "rationorm": lambda steps: torch.ones_like(steps.std),
    "guard": lambda steps: torch.ones_like(steps.std),
    "guard_upstream": lambda steps: torch.ones_like(steps.std),
    "guard_velocity": lambda steps: steps.v_gain.abs(),
}


def reference_losses(name, moves, v, low, high):
    """Return -(w_t min(r A, clip(r, 1 - low, 1 + high) A) - w_t A) of every row."""
    ratio, weight = TABLE[name]
    steps = moves.steps
    at = moves.rows.step
    a = moves.rows.advantage
    s = steps.std[at]
    old = moves.mean(moves.v_old)
    new = moves.mean(v)
    x_next = old + s[:, None] * moves.eps
    log_r = log_probability(x_next, new, s) - log_probability(x_next, old, s)
    r = torch.exp(ratio(log_r, (new - old).square().mean(1), s, steps.v_gain[at].abs()))
    w = weight((steps.t - steps.t_next)[:9], steps.std[:9])[at]
    return -w * (torch.minimum(r * a, r.clamp(1 - low, 1 + high) * a) - a)


def measure_drift(moves, v):
    """Return the drift of a policy with velocities v."""
    at = moves.rows.step
    s = moves.steps.std[at]
    step = Step(mean=moves.mean(v), std=s, gain=moves.steps.v_gain[at].abs())
    x_next = moves.mean(moves.v_old) + s[:, None] * moves.eps
    return drift(step, x_next, moves.eps)


def pick_rows(drift, at):
    return map_tensors(drift, lambda x: x[at])


def make_clip(**changes):
    """Make an objective on RatioNorm without weights."""
    settings = {"high": 1e-4, "low": 1e-4} | changes
    return Clip(name="tried", ratio=log_ratio_norm, weight=uniform, adaptation=Fixed(), **settings)


def assert_losses_match(name, clip, losses, sde, times):
    """Compare `losses(drift, rows, schedule)` and their gradient by velocity with the reference.

    Returns the moves and the gradient.
    """
    scale = math.sqrt(65_536 / D)
    low = clip.low * scale
    high = clip.high * scale
    moves = make_moves(sde, times, lambda steps: high * UNITS[name](steps))
    v = moves.v.clone().requires_grad_()
    ours = losses(measure_drift(moves, v), moves.rows, moves.steps)
    theirs = reference_losses(name, moves, v, low, high)
    (our_gradient,) = torch.autograd.grad(ours.sum(), v)
    (their_gradient,) = torch.autograd.grad(theirs.sum(), v)
    assert ours.shape == theirs.shape
    assert ((ours - theirs).abs() <= 1e-9 * theirs.abs()).all()
    size = their_gradient.norm(dim=1, keepdim=True)
    assert ((our_gradient - their_gradient).abs() <= 1e-9 * size).all()
    return moves, their_gradient


def make_lopsided(clip):
    """Return the objective with a narrower range below 1, so that exchanged sides are noticed."""
    return dataclasses.replace(clip, low=0.6 * clip.low)


def losses_of(clip):
    """Return the function (drift, rows, schedule) -> losses of an objective."""
    return lambda drift, rows, schedule: apply_objective(clip, drift, rows, schedule).loss


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
@pytest.mark.parametrize("name", NAMES)
def test_objectives_are_the_papers(name, sde, choice, sd35):
    clip = make_lopsided(choice("clipping", name))
    moves, gradient = assert_losses_match(name, clip, losses_of(clip), sde, sd35)
    clipped = gradient.abs().amax(1) == 0
    shares = torch.stack([clipped[moves.rows.step == step].float().mean() for step in range(9)])
    # The rows of guard_upstream share a bias: through it, clipped rows have a gradient too.
    assert name == "guard_upstream" or ((shares > 0) & (shares < 1)).all()


# Each mutation below is a function: objective -> its losses with one mistake, as a function of
# (drift, rows, schedule).


def replace_part(**parts):
    """Replace parts of the objective; each is a function of the objective."""

    def mutate(clip):
        changes = {name: make(clip) for name, make in parts.items()}
        return losses_of(dataclasses.replace(clip, **changes))

    return mutate


def change_input(change):
    """Change the drift, the rows or the schedule before the objective sees them."""
    return lambda clip: lambda *arguments: losses_of(clip)(*change(*arguments))


def replace_surrogate(choose, ratio=torch.expm1):
    """Choose otherwise between the free and the clipped surrogate, or take another r - 1."""

    def mutate(clip):
        def losses(drift, rows, schedule):
            log_ratio = clip.ratio(drift)
            low, high = (limit[0] for limit in clip.limits(drift.dimensions, 10))
            free = ratio(log_ratio) * rows.advantage
            clipped = ratio(log_ratio.clamp(low, high)) * rows.advantage
            return -clip.weight(schedule)[rows.step] * choose(free, clipped)

        return losses

    return mutate


def raw_ratio(bias=2.0, power=2):
    """Replace the ratio by the raw one with another bias; the defaults are the right bias."""
    return replace_part(
        ratio=lambda clip: (
            lambda drift: drift.along / drift.std - drift.square / (bias * drift.std**power)
        )
    )


def bias_of_batch(drift):
    return drift.along / drift.std - (drift.square / (2 * drift.std**2)).mean()


def next_step(drift, rows, schedule):
    return drift, dataclasses.replace(rows, step=(rows.step + 1) % 9), schedule


def root_twice(drift, rows, schedule):
    root = (schedule.t - schedule.t_next)[rows.step].sqrt()
    return dataclasses.replace(drift, std=drift.std * root), rows, schedule


def sum_dimensions(drift, rows, schedule):
    summed = dataclasses.replace(drift, along=drift.along * D, square=drift.square * D)
    return summed, rows, schedule


def reference_dimensions(drift, rows, schedule):
    return dataclasses.replace(drift, dimensions=65_536), rows, schedule


def clip_in_log_space(clip):
    """Clip log r at +-e instead of log(1 +- e)."""

    def losses(drift, rows, schedule):
        log_ratio = clip.ratio(drift)
        scale = math.sqrt(65_536 / D)
        clipped = log_ratio.clamp(-clip.low * scale, clip.high * scale)
        surrogate = torch.minimum(
            log_ratio.expm1() * rows.advantage, clipped.expm1() * rows.advantage
        )
        return -clip.weight(schedule)[rows.step] * surrogate

    return losses


def outer_product(clip):
    """Multiply (R, 1) by (1, R), which broadcasts to (R, R)."""
    losses = losses_of(clip)
    return lambda drift, rows, schedule: (
        losses(drift, rows, schedule)[:, None] * torch.ones(1, len(rows))
    )


MUTATIONS = {
    "sign": ("guard", lambda clip: lambda *arguments: -losses_of(clip)(*arguments)),
    "bias over 4": ("vanilla", raw_ratio(bias=4.0)),
    "bias over s": ("vanilla", raw_ratio(power=1)),
    "bias added": ("vanilla", raw_ratio(bias=-2.0)),
    "bias left in": ("mean_revised", raw_ratio()),
    "bias of the batch": ("vanilla", replace_part(ratio=lambda clip: bias_of_batch)),
    "dropped s": ("vanilla", replace_part(ratio=lambda clip: log_ratio_norm)),
    "kept s": ("guard", replace_part(ratio=lambda clip: log_ratio_mean)),
    "dropped 1/dt": ("guard", replace_part(weight=lambda clip: uniform)),
    "1/dt of sqrt(dt)": ("guard", replace_part(weight=lambda clip: lambda s: inverse_dt(s).sqrt())),
    "1/dt in the ratio": (
        "guard",
        replace_part(ratio=lambda clip: log_ratio_velocity, weight=lambda clip: uniform),
    ),
    "weight of the next step": ("guard", change_input(next_step)),
    "weight not normalised": ("temp_reweight", replace_part(weight=lambda clip: lambda s: s.std)),
    "weight normalised over all steps": (
        "temp_reweight",
        replace_part(weight=lambda clip: lambda s: s.std / s.std.mean()),
    ),
    "sqrt(dt) twice": ("vanilla", change_input(root_twice)),
    "sum over dimensions": ("rationorm", change_input(sum_dimensions)),
    "clip range not scaled": ("rationorm", change_input(reference_dimensions)),
    "clipped in log space": ("vanilla", clip_in_log_space),
    "sides exchanged": (
        "rationorm",
        replace_part(high=lambda clip: clip.low, low=lambda clip: clip.high),
    ),
    "maximum": ("guard", replace_surrogate(torch.maximum)),
    "never clipped": ("guard", replace_surrogate(lambda free, clipped: free)),
    "always clipped": ("guard", replace_surrogate(lambda free, clipped: clipped)),
    "first order": ("vanilla", replace_surrogate(torch.minimum, ratio=lambda x: x)),
    "constant kept": ("vanilla", replace_surrogate(torch.minimum, ratio=torch.exp)),
    "detached": (
        "guard",
        replace_surrogate(lambda free, clipped: clipped.detach() + (free - free.detach())),
    ),
    "outer product": ("guard", outer_product),
}


@pytest.mark.parametrize(("name", "mutate"), MUTATIONS.values(), ids=MUTATIONS)
def test_wrong_formulas_are_caught(name, mutate, choice, sd35):
    clip = make_lopsided(choice("clipping", name))
    with pytest.raises(AssertionError):
        assert_losses_match(name, clip, mutate(clip), SDES["flow"], sd35)


# Largest over smallest gradient across SD3.5's trained steps, under the same noise.
SPREADS = {
    "vanilla": 26,
    "mean_revised": 26,
    "temp_reweight": 8.4,
    "rationorm": 8.4,
    "guard": 1.245,
    "guard_upstream": 1.245,
    "guard_velocity": 1,
}


@pytest.mark.parametrize("name", NAMES)
def test_gradient_scale_across_steps(name, choice, sd35):
    """Under the same noise, the largest gradient of a step is this many times the smallest."""
    moves = make_moves(SDES["flow"], sd35, lambda steps: 0 * steps.std, distances=(1,))
    moves = dataclasses.replace(moves, eps=moves.eps[:1].expand_as(moves.eps))
    v = moves.v_old.clone().requires_grad_()
    clip = choice("clipping", name)
    result = apply_objective(clip, measure_drift(moves, v), moves.rows, moves.steps)
    assert torch.equal(result.loss, torch.zeros_like(result.loss))
    (gradient,) = torch.autograd.grad(result.loss.sum(), v)
    scale = gradient.norm(dim=1) / moves.rows.advantage.abs()
    assert (scale.max() / scale.min()).item() == pytest.approx(SPREADS[name], rel=0.006)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize(
    ("log_ratio", "high", "low"), [(-2e-4, 0, 1), (-0.5e-4, 0, 0), (0.5e-4, 0, 0), (2e-4, 1, 0)]
)
def test_the_clip_acts_where_ppo_says(advantage, log_ratio, high, low):
    along = torch.tensor([log_ratio], dtype=torch.float64, requires_grad=True)
    clip = make_clip()
    zero = torch.zeros(1).long()
    rows = Rows(sample=zero, step=zero, advantage=torch.tensor([advantage]))
    one = torch.ones(1, dtype=torch.float64)
    drift = Drift(along=along, square=one, std=one, gain=one, dimensions=65_536)
    steps = schedule(SDES["flow"], torch.tensor([1.0, 0.5, 0.0]))
    result = apply_objective(clip, drift, rows, steps)
    (gradient,) = torch.autograd.grad(result.loss.sum(), along)
    assert (result.high.item(), result.low.item()) == (high, low)
    assert (gradient.item() == 0) == bool(high if advantage > 0 else low)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"guard_upstream"}))
def test_the_loss_of_a_row_does_not_depend_on_the_steps_beside_it(name, choice, sd35):
    clip = choice("clipping", name)
    moves = make_moves(SDES["flow"], sd35, UNITS[name])
    moved = measure_drift(moves, moves.v)
    together = apply_objective(clip, moved, moves.rows, moves.steps).loss
    for step in range(9):
        at = (moves.rows.step == step).nonzero().flatten()
        alone = pick_rows(moved, at)
        loss = apply_objective(clip, alone, moves.rows[at], moves.steps).loss
        assert torch.equal(loss, together[at])


@pytest.mark.parametrize(
    ("dimensions", "scale"), [(65_536, 1), (16_384, 2), (1024, 8), (262_144, 0.5)]
)
def test_clip_ranges_follow_the_dimensions(dimensions, scale):
    low, high = make_clip(high=2e-6, low=1e-6).limits(dimensions, 1)
    assert math.expm1(high) == pytest.approx(2e-6 * scale, rel=1e-9)
    assert math.expm1(low) == pytest.approx(-1e-6 * scale, rel=1e-9)


def test_a_lower_range_scaled_beyond_1_stays_finite():
    low, _ = make_clip(high=0.5, low=0.5).limits(64, 1)
    assert -math.inf < low < math.log(0.5)


@pytest.mark.parametrize("high", [0.0, -1e-6, math.nan])
def test_an_empty_upper_range_is_refused(high):
    with pytest.raises(ConfigError, match=f"high={high} is not positive; give"):
        make_clip(high=high, low=1e-6)


@pytest.mark.parametrize("low", [0.0, -1e-6, 1.0, math.nan])
def test_a_lower_range_outside_0_to_1_is_refused(low):
    with pytest.raises(ConfigError, match=rf"low={low} is outside \(0, 1\); give"):
        make_clip(high=1e-6, low=low)


def test_the_authors_bias_makes_rows_depend_on_each_other(choice, sd35):
    clip = choice("clipping", "guard_upstream")
    moves = make_moves(SDES["flow"], sd35, UNITS["guard_upstream"])
    moved = measure_drift(moves, moves.v)
    alone = pick_rows(moved, [0])
    assert torch.equal(clip.ratio(alone), log_ratio_norm(alone))
    assert not torch.equal(clip.ratio(moved)[:1], log_ratio_norm(alone))


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_dppo_drops_rows_that_are_far_and_move_away(sde, sd35):
    moves = make_moves(sde, sd35, lambda steps: 2e-3 * steps.std)
    v = moves.v.clone().requires_grad_()
    moved = measure_drift(moves, v)
    a = moves.rows.advantage
    log_r = log_ratio_raw(moved).detach()
    d = moves.mean(moves.v) - moves.mean(moves.v_old)
    kl = d.square().mean(1) / (2 * moves.steps.std[moves.rows.step] ** 2)
    divergence = 1.1 * kl.median().item()
    dppo = Dppo(name="dppo", ratio=log_ratio_raw, weight=uniform, divergence=divergence)
    dropped = (kl >= dppo.divergence) & (((a > 0) & (log_r > 0)) | ((a < 0) & (log_r < 0)))
    result = apply_objective(dppo, moved, moves.rows, moves.steps)
    (gradient,) = torch.autograd.grad(result.loss.sum(), v, retain_graph=True)
    (free,) = torch.autograd.grad(-(log_ratio_raw(moved).exp() * a).sum(), v)
    assert 0.1 < dropped.float().mean() < 0.5
    assert torch.equal(gradient.abs().amax(1) == 0, dropped)
    assert torch.allclose(gradient[~dropped], free[~dropped], rtol=1e-9, atol=0)
    assert torch.equal(result.high | result.low, kl >= dppo.divergence)
    assert not (result.high & (log_r < 0)).any()
    assert not (result.low & (log_r > 0)).any()
    # The loss of a dropped row is 0, and that of another one leaves out the constant A.
    expected = torch.where(dropped, 0.0, -log_r.exp() * a + a)
    assert torch.allclose(result.loss, expected, rtol=1e-9, atol=1e-15)


def make_drift(along, square=1.0):
    """Make the drift of one row with a spread of 1."""
    one = torch.ones(1, dtype=torch.float64)
    return Drift(along=along * one, square=square * one, std=one, gain=one, dimensions=65_536)


def one_row(advantage):
    zero = torch.zeros(1).long()
    return Rows(sample=zero, step=zero, advantage=torch.tensor([advantage]))


@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
def test_dppo_drops_nothing_that_has_not_moved_away(advantage):
    """A row whose ratio is exactly 1 moves nowhere, however far its mean is; A = 0 has no loss."""
    dppo = Dppo(name="dppo", ratio=log_ratio_mean, weight=uniform, divergence=0.5)
    steps = schedule(SDES["flow"], torch.tensor([1.0, 0.5, 0.0]))
    result = apply_objective(dppo, make_drift(0.0), one_row(advantage), steps)
    assert (result.high.item(), result.low.item()) == (False, False)
    result = apply_objective(dppo, make_drift(0.1), one_row(advantage), steps)
    assert result.high.item(), "a divergence at the limit is beyond it"
    free = -math.expm1(0.1) * advantage
    assert result.loss.item() == pytest.approx(0 if advantage > 0 else free, abs=1e-12)


def test_dppo_is_logged_in_standard_deviations_at_its_limit():
    dppo = Dppo(name="dppo", ratio=log_ratio_raw, weight=uniform, divergence=0.02)
    low, high = dppo.limits(100, 3)
    assert high.tolist() == pytest.approx([0.02] * 3)
    assert low.tolist() == pytest.approx([-0.02] * 3)


@pytest.mark.parametrize("side", ["high", "low"])
def test_a_ratio_at_the_edge_is_within(side):
    clip = make_clip()
    steps = schedule(SDES["flow"], torch.tensor([1.0, 0.5, 0.0]))
    low, high = clip.limits(65_536, 2)
    edge = (high if side == "high" else low)[0].item()
    for place, is_beyond in ((edge, False), (edge * 1.000001, True)):
        result = clip(make_drift(place), one_row(1.0), steps, (low, high))
        assert getattr(result, side).item() == is_beyond


def test_dppo_has_no_clip_range():
    with pytest.raises(TypeError, match="high"):
        Dppo(name="dppo", ratio=log_ratio_raw, weight=uniform, divergence=1e-4, high=1e-4)
    with pytest.raises(
        ConfigError, match=r"divergence=0.0 is not positive; give a KL such as 1e-5"
    ):
        Dppo(name="dppo", ratio=log_ratio_raw, weight=uniform, divergence=0.0)
