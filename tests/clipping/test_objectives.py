"""Objectives against the method, written out again in float64: values, gradients, and formulas nearly right."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from toy import objective

from grpo_guard.clipping import adapt, scale_limits
from grpo_guard.clipping.clip import Clip
from grpo_guard.clipping.dppo import Dppo
from grpo_guard.clipping.fixed import Fixed
from grpo_guard.clipping.target_fraction import TargetFraction
from grpo_guard.clipping.weight import beta_over_dt, inverse_dt, inverse_gain, std, uniform
from grpo_guard.gaussian import drift
from grpo_guard.ratio import log_ratio_mean, log_ratio_norm, log_ratio_raw, log_ratio_velocity
from grpo_guard.schema import ConfigError, record
from grpo_guard.sde import schedule
from grpo_guard.sde.cps import Cps
from grpo_guard.sde.dance import Dance
from grpo_guard.sde.flow import Flow
from grpo_guard.sde.window import Window
from grpo_guard.types import Drift, Objective, Replay, Rows, Schedule, Step, map_tensors

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
class Case:
    """Rows of every trained step: ratios within, beyond and far beyond the clip range, advantages of either sign."""

    steps: Schedule
    rows: Rows
    x: torch.Tensor
    eps: torch.Tensor
    v_old: torch.Tensor
    v: torch.Tensor

    def mean(self, v):
        """The mean of every row's step under velocities v."""
        at = self.rows.step
        return self.steps.x_gain[at, None] * self.x + self.steps.v_gain[at, None] * v


def double(records):
    return map_tensors(records, lambda x: x.double() if x.is_floating_point() else x)


def case(sde, times, unit, reach=(-100, -3, -0.5, 0.5, 3, 100)):
    """`unit(steps)` is the mean(eps d) of each step that puts a log-ratio on the edge of the clip range."""
    steps, random = double(schedule(sde, times)), torch.Generator().manual_seed(1)
    grid = [(step, far, sign) for step in range(9) for far in reach for sign in (-1.3, 0.7)]
    step, far, advantage = (torch.tensor(column) for column in zip(*grid, strict=True))
    x, eps, v, aside = torch.randn(4, len(grid), D, generator=random, dtype=torch.float64)
    along = eps / eps.square().mean(1, keepdim=True) + 0.2 * (
        aside - eps * (eps * aside).mean(1, keepdim=True)
    )
    d = (far * unit(steps)[step])[:, None] * along
    rows = Rows(sample=torch.arange(len(grid)), step=step, advantage=advantage.double())
    return Case(steps=steps, rows=rows, x=x, eps=eps, v_old=v, v=v + d / steps.v_gain[step, None])


def log_probability(x, mean, s):
    """Of a Gaussian, mean-reduced over dimensions, without its normaliser."""
    return -(x - mean).square().mean(1) / (2 * s.square())


# Table 2 of the paper (arXiv 2510.22319) and ours: (log-ratio from log r, mean(d^2), s and |v_gain|; w_t from dt and s)
TABLE = {
    "vanilla": (lambda log_r, d2, s, gain: log_r, lambda dt, s: 1 + 0 * s),
    "temp_reweight": (lambda log_r, d2, s, gain: log_r, lambda dt, s: s / s.mean()),
    "mean_revised": (lambda log_r, d2, s, gain: log_r + d2 / (2 * s**2), lambda dt, s: 1 + 0 * s),
    "rationorm": (
        lambda log_r, d2, s, gain: s * (log_r + d2 / (2 * s**2)),
        lambda dt, s: 1 + 0 * s,
    ),
    "guard": (lambda log_r, d2, s, gain: s * (log_r + d2 / (2 * s**2)), lambda dt, s: 1 / dt),
    "guard_upstream": (
        lambda log_r, d2, s, gain: s * (log_r + (d2 / (2 * s**2)).mean()),
        lambda dt, s: 1 / dt,
    ),
    "guard_velocity": (
        lambda log_r, d2, s, gain: s * (log_r + d2 / (2 * s**2)) / gain,
        lambda dt, s: 1 + 0 * s,
    ),
}


def reference(name, moves, v, low, high):
    """-(w_t min(r A, clip(r, 1 - low, 1 + high) A) - w_t A) of every row."""
    ratio, weight = TABLE[name]
    steps, at, a = moves.steps, moves.rows.step, moves.rows.advantage
    s, old, new = steps.std[at], moves.mean(moves.v_old), moves.mean(v)
    x_next = old + s[:, None] * moves.eps
    log_r = log_probability(x_next, new, s) - log_probability(x_next, old, s)
    r = torch.exp(ratio(log_r, (new - old).square().mean(1), s, steps.v_gain[at].abs()))
    w = weight((steps.t - steps.t_next)[:9], steps.std[:9])[at]
    return -w * (torch.minimum(r * a, r.clamp(1 - low, 1 + high) * a) - a)


def replay(moves, v):
    """The drift of the policy that says v."""
    at = moves.rows.step
    gain, s, old = moves.steps.v_gain[at].abs(), moves.steps.std[at], moves.mean(moves.v_old)
    return drift(
        Step(mean=moves.mean(v), std=s, gain=gain), old + s[:, None] * moves.eps, moves.eps
    )


def check(name, clip, losses, sde, times):
    """Assert that `losses(drift, rows, schedule)` and their gradient wrt velocity are the reference's."""
    scale = math.sqrt(65_536 / D)
    low, high = clip.low * scale, clip.high * scale
    moves = case(sde, times, lambda steps: high * UNITS[name](steps))
    computed, wanted = (
        (value.detach(), *torch.autograd.grad(value.sum(), v))
        for v in [moves.v.clone().requires_grad_()]
        for value in (
            losses(replay(moves, v), moves.rows, moves.steps),
            reference(name, moves, v, low, high),
        )
    )
    for ours, theirs in zip(computed, wanted, strict=True):
        assert ours.shape == theirs.shape
        size = theirs.abs() if theirs.ndim == 1 else theirs.norm(dim=1, keepdim=True)
        assert ((ours - theirs).abs() <= 1e-9 * size).all()
    return moves, wanted


UNITS = {
    "vanilla": lambda steps: steps.std,
    "temp_reweight": lambda steps: steps.std,
    "mean_revised": lambda steps: steps.std,
    "rationorm": lambda steps: torch.ones_like(steps.std),
    "guard": lambda steps: torch.ones_like(steps.std),
    "guard_upstream": lambda steps: torch.ones_like(steps.std),
    "guard_velocity": lambda steps: steps.v_gain.abs(),
}


@pytest.fixture(params=NAMES)
def named(request, choice):
    """Every objective of conf/clipping, its range made lopsided so that sides cannot be mistaken."""
    clip = choice("clipping", request.param)
    return request.param, dataclasses.replace(clip, low=0.6 * clip.low)


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_objectives_are_the_papers(named, sde, sd35):
    name, clip = named
    moves, (_, gradient) = check(name, clip, lambda *seen: objective(clip, *seen).loss, sde, sd35)
    still = gradient.abs().amax(1) == 0
    shares = torch.stack([still[moves.rows.step == step].float().mean() for step in range(9)])
    assert (
        (shares > 0) & (shares < 1)
    ).all() or name == "guard_upstream"  # whose rows share a bias, and its gradient


def wrong(**changes):
    """The objective with a part of Clip's replaced."""
    return lambda clip: (
        lambda *seen: (
            objective(
                dataclasses.replace(clip, **{k: c(clip) for k, c in changes.items()}), *seen
            ).loss
        )
    )


def raw(bias=2.0, power=2):
    return lambda clip: (
        lambda drift: drift.along / drift.std - drift.square / (bias * drift.std**power)
    )


def batch_mean(clip):
    return lambda drift: drift.along / drift.std - (drift.square / (2 * drift.std**2)).mean()


def rewritten(change):
    """The objective of a drift, rows or schedule that was changed before."""
    return lambda clip: lambda *seen: objective(clip, *change(*seen)).loss


def shifted(drift, rows, schedule):
    return drift, dataclasses.replace(rows, step=(rows.step + 1) % 9), schedule


def doubled_root(drift, rows, schedule):
    root = (schedule.t - schedule.t_next)[rows.step].sqrt()
    return dataclasses.replace(drift, std=drift.std * root), rows, schedule


def summed(drift, rows, schedule):
    return (
        dataclasses.replace(drift, along=drift.along * D, square=drift.square * D),
        rows,
        schedule,
    )


def unscaled(drift, rows, schedule):
    return dataclasses.replace(drift, dimensions=65_536), rows, schedule


def in_log_space(clip):
    """Clipped at +-e instead of log(1 +- e)."""

    def losses(drift, rows, schedule):
        log_ratio, scale = clip.ratio(drift), math.sqrt(65_536 / D)
        clipped = log_ratio.clamp(-clip.low * scale, clip.high * scale)
        surrogate = torch.minimum(
            log_ratio.expm1() * rows.advantage, clipped.expm1() * rows.advantage
        )
        return -clip.weight(schedule)[rows.step] * surrogate

    return losses


def surrogate(choose, ratio=torch.expm1):
    """Another choice between the free and the clipped surrogate, or another ratio from its logarithm."""

    def build(clip):
        def losses(drift, rows, schedule):
            log_ratio = clip.ratio(drift)
            limits = [limit[0] for limit in clip.limits(drift.dimensions, 10)]
            free, clipped = (
                ratio(x) * rows.advantage for x in (log_ratio, log_ratio.clamp(*limits))
            )
            return -clip.weight(schedule)[rows.step] * choose(free, clipped)

        return losses

    return build


def outer(clip):
    """(B,) times (B, 1): right only while all rows have one weight."""
    return lambda drift, rows, schedule: (
        objective(clip, drift, rows, schedule).loss[:, None] * torch.ones(1, len(rows))
    )


MUTANTS = {
    "sign": ("guard", lambda clip: lambda *seen: -objective(clip, *seen).loss),
    "bias over 4": ("vanilla", wrong(ratio=raw(bias=4.0))),
    "bias over s": ("vanilla", wrong(ratio=raw(power=1))),
    "bias added": ("vanilla", wrong(ratio=raw(bias=-2.0))),
    "bias left in": ("mean_revised", wrong(ratio=raw())),
    "bias of the batch": ("vanilla", wrong(ratio=batch_mean)),
    "dropped s": ("vanilla", wrong(ratio=lambda clip: log_ratio_norm)),
    "kept s": ("guard", wrong(ratio=lambda clip: log_ratio_mean)),
    "dropped 1/dt": ("guard", wrong(weight=lambda clip: uniform)),
    "1/dt of sqrt(dt)": ("guard", wrong(weight=lambda clip: lambda s: inverse_dt(s).sqrt())),
    "1/dt in the ratio": (
        "guard",
        wrong(ratio=lambda clip: log_ratio_velocity, weight=lambda clip: uniform),
    ),
    "weight of the next step": ("guard", rewritten(shifted)),
    "weight not normalised": ("temp_reweight", wrong(weight=lambda clip: lambda s: s.std)),
    "weight normalised over all steps": (
        "temp_reweight",
        wrong(weight=lambda clip: lambda s: s.std / s.std.mean()),
    ),
    "sqrt(dt) twice": ("vanilla", rewritten(doubled_root)),
    "sum over dimensions": ("rationorm", rewritten(summed)),
    "clip range not scaled": ("rationorm", rewritten(unscaled)),
    "clipped in log space": ("vanilla", in_log_space),
    "sides exchanged": ("rationorm", wrong(high=lambda clip: clip.low, low=lambda clip: clip.high)),
    "maximum": ("guard", surrogate(torch.maximum)),
    "never clipped": ("guard", surrogate(lambda free, clipped: free)),
    "always clipped": ("guard", surrogate(lambda free, clipped: clipped)),
    "first order": ("vanilla", surrogate(torch.minimum, ratio=lambda x: x)),
    "constant kept": ("vanilla", surrogate(torch.minimum, ratio=torch.exp)),
    "detached": (
        "guard",
        surrogate(lambda free, clipped: clipped.detach() + (free - free.detach())),
    ),
    "outer product": ("guard", outer),
}


@pytest.mark.parametrize(("name", "mutate"), MUTANTS.values(), ids=MUTANTS)
def test_wrong_formulas_are_caught(name, mutate, choice, sd35):
    clip = choice("clipping", name)
    clip = dataclasses.replace(clip, low=0.6 * clip.low)
    with pytest.raises(AssertionError):
        check(name, clip, mutate(clip), SDES["flow"], sd35)


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
    moves = case(SDES["flow"], sd35, lambda steps: 0 * steps.std, reach=(1,))
    eps = moves.eps[:1].expand_as(moves.eps)
    moves, v = dataclasses.replace(moves, eps=eps), moves.v_old.clone().requires_grad_()
    result = objective(choice("clipping", name), replay(moves, v), moves.rows, moves.steps)
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
    clip = Clip(
        name="tried", ratio=log_ratio_norm, weight=uniform, adaptation=Fixed(), high=1e-4, low=1e-4
    )
    rows = Rows(
        sample=torch.zeros(1).long(),
        step=torch.zeros(1).long(),
        advantage=torch.tensor([advantage]),
    )
    result = objective(
        clip, stand_in(along), rows, schedule(SDES["flow"], torch.tensor([1.0, 0.5, 0.0]))
    )
    (gradient,) = torch.autograd.grad(result.loss.sum(), along)
    assert (result.high.item(), result.low.item()) == (high, low)
    assert (gradient.item() == 0) == bool(high if advantage > 0 else low)


def stand_in(along, dimensions=65_536):
    ones = torch.ones_like(along)
    return Drift(along=along, square=ones.detach(), std=ones, gain=ones, dimensions=dimensions)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"guard_upstream"}))
def test_mixed_steps_cost_what_they_cost_apart(name, choice, sd35):
    clip = choice("clipping", name)
    moves = case(SDES["flow"], sd35, UNITS[name])
    moved = replay(moves, moves.v)
    together = objective(clip, moved, moves.rows, moves.steps).loss
    for step in range(9):
        at = (moves.rows.step == step).nonzero().flatten()
        apart = dataclasses.replace(
            moved,
            along=moved.along[at],
            square=moved.square[at],
            std=moved.std[at],
            gain=moved.gain[at],
        )
        assert torch.equal(objective(clip, apart, moves.rows[at], moves.steps).loss, together[at])


@pytest.mark.parametrize(
    ("dimensions", "scale"), [(65_536, 1), (16_384, 2), (1024, 8), (262_144, 0.5)]
)
def test_clip_ranges_follow_the_dimensions(dimensions, scale):
    low, high = Clip(
        name="tried", ratio=log_ratio_norm, weight=uniform, adaptation=Fixed(), high=2e-6, low=1e-6
    ).limits(dimensions, 1)
    assert math.expm1(high) == pytest.approx(2e-6 * scale, rel=1e-9)
    assert math.expm1(low) == pytest.approx(-1e-6 * scale, rel=1e-9)


def test_a_huge_lower_range_stays_a_range():
    low, _ = Clip(
        name="tried", ratio=log_ratio_norm, weight=uniform, adaptation=Fixed(), high=0.5, low=0.5
    ).limits(64, 1)
    assert -math.inf < low < math.log(0.5)


def test_weights(sd35):
    steps = double(schedule(SDES["flow"], sd35))
    assert torch.equal(uniform(steps), torch.ones(10, dtype=torch.float64))
    assert std(steps)[:9].mean().item() == pytest.approx(1)
    assert torch.allclose(std(steps)[:9] / std(steps)[0], steps.std[:9] / steps.std[0])
    dt, ones = steps.t - steps.t_next, torch.ones(10, dtype=torch.float64)
    assert torch.allclose(inverse_dt(steps) * dt, ones)
    assert torch.allclose(
        (beta_over_dt(steps) * dt)[1:9], 1.245 * ones[1:9]
    )  # beta of flow at level 0.7
    assert torch.allclose(inverse_gain(steps) * dt, 1 / (beta_over_dt(steps) * dt))


def test_the_inverse_gain_equalises_every_sde(sd35):
    """RatioNorm's gradient with respect to the velocity is gain * eps / D."""
    for sde in SDES.values():
        steps = double(schedule(sde, sd35))
        assert torch.allclose(
            inverse_gain(steps) * steps.v_gain.abs(), torch.ones(10, dtype=torch.float64)
        )
        assert torch.allclose(
            beta_over_dt(steps),
            inverse_dt(steps) / (inverse_gain(steps) * (steps.t - steps.t_next)),
        )


@pytest.mark.parametrize("high", [0.0, -1e-6, math.nan])
def test_an_empty_upper_range_is_refused(high):
    with pytest.raises(ConfigError, match=f"high={high} is not positive; give"):
        Clip(
            name="tried",
            ratio=log_ratio_raw,
            weight=uniform,
            adaptation=Fixed(),
            high=high,
            low=1e-6,
        )


@pytest.mark.parametrize("low", [0.0, -1e-6, 1.0, math.nan])
def test_a_lower_range_outside_0_to_1_is_refused(low):
    with pytest.raises(ConfigError, match=rf"low={low} is outside \(0, 1\); give"):
        Clip(
            name="tried",
            ratio=log_ratio_raw,
            weight=uniform,
            adaptation=Fixed(),
            high=1e-6,
            low=low,
        )


def test_the_authors_bias_makes_rows_depend_on_each_other(choice, sd35):
    clip = choice("clipping", "guard_upstream")
    moves = case(SDES["flow"], sd35, UNITS["guard_upstream"])
    moved = replay(moves, moves.v)
    alone = map_tensors(moved, lambda x: x[:1])
    assert torch.equal(clip.ratio(alone), log_ratio_norm(alone))
    assert not torch.equal(clip.ratio(moved)[:1], log_ratio_norm(alone))


# ------------------------------------------------------------------------------------------------ adaptive ranges


def spread(step, sizes, generator, rows=4000):
    """The replay of rows whose normalised log-ratios are Gaussian, of another size at every step."""
    at = torch.arange(rows * len(sizes)) % len(sizes)
    along = torch.randn(len(at), generator=generator) * torch.tensor(sizes)[at]
    ones = torch.ones_like(along)
    rows = Rows(sample=torch.arange(len(at)), step=at, advantage=ones)
    objective = Objective(loss=ones, log_ratio=ones, high=ones > 2, low=ones > 2)
    return Replay(
        rows=rows, drift=stand_in(along), objective=objective, penalty=0 * ones, gradient=ones
    )


def outside(clip, multipliers, replay, steps):
    """The share of the rows outside the clip range, in all and at every step."""
    limits = scale_limits(clip.limits(replay.drift.dimensions, len(steps)), multipliers)
    result = clip(replay.drift, replay.rows, steps, limits)
    out = (result.high | result.low).float()
    return out.mean().item(), [out[replay.rows.step == step].mean().item() for step in range(3)]


@pytest.mark.parametrize("per_step", [True, False])
@pytest.mark.parametrize("low", [1e-4, 0.5e-4])
def test_a_range_meets_its_target(per_step, low, generator):
    steps = schedule(SDES["flow"], torch.tensor([1.0, 0.7, 0.4, 0.1, 0.0]))
    target = TargetFraction(fraction=0.2, per_step=per_step, memory=0.5)
    clip = Clip(
        name="tried", ratio=log_ratio_norm, weight=uniform, adaptation=target, high=1e-4, low=low
    )
    sizes = [1e-5, 3e-4, 2e-3]
    multipliers = adapt(clip, (), spread(steps, sizes, generator), steps)
    overall, each_step = outside(clip, multipliers, spread(steps, sizes, generator), steps)
    assert overall == pytest.approx(0.2, abs=0.02)
    assert (max(each_step) - min(each_step) < 0.05) == per_step
    below, above = scale_limits(clip.limits(65_536, 4), multipliers)
    assert (below / above).tolist() == pytest.approx([-low / 1e-4] * 4, rel=1e-3)
    assert (len(set(above[:3].tolist())) == 3) == per_step


def test_a_range_forgets_and_waits(generator):
    steps = schedule(SDES["flow"], torch.tensor([1.0, 0.7, 0.4, 0.1, 0.0]))
    target = TargetFraction(fraction=0.2, per_step=True, memory=0.5)
    clip = Clip(
        name="tried", ratio=log_ratio_norm, weight=uniform, adaptation=target, high=1e-4, low=1e-4
    )
    still = map_tensors(
        spread(steps, [1e-4] * 3, generator), lambda x: 0 * x if x.is_floating_point() else x
    )
    assert adapt(clip, (), still, steps) == (1.0,) * 4
    seen = spread(steps, [1e-4] * 3, generator)
    once = adapt(clip, (), seen, steps)
    louder = dataclasses.replace(
        seen, drift=dataclasses.replace(seen.drift, along=16 * seen.drift.along)
    )
    assert adapt(clip, once, louder, steps)[:3] == pytest.approx(
        [4 * multiplier for multiplier in once[:3]], rel=1e-5
    )
    assert adapt(clip, once, still, steps) == once


def test_a_fixed_range_stays(generator):
    steps = schedule(SDES["flow"], torch.tensor([1.0, 0.7, 0.4, 0.1, 0.0]))
    clip = Clip(
        name="tried", ratio=log_ratio_norm, weight=uniform, adaptation=Fixed(), high=1e-4, low=1e-4
    )
    assert adapt(clip, (), spread(steps, [1.0] * 3, generator), steps) == ()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"fraction": 0.0}, "fraction=0.0 is outside"),
        ({"fraction": 1.0}, "fraction=1.0 is outside"),
        ({"memory": 1.0}, "memory=1.0 is outside"),
    ],
)
def test_targets_out_of_range_are_refused(change, line):
    with pytest.raises(ConfigError, match=line):
        TargetFraction(**{"fraction": 0.2, "per_step": True, "memory": 0.5} | change)


# ------------------------------------------------------------------------------------------------ DPPO


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_dppo_drops_what_is_far_and_moves_away(sde, sd35):
    moves = case(sde, sd35, lambda steps: 2e-3 * steps.std)
    v = moves.v.clone().requires_grad_()
    moved, a = replay(moves, v), moves.rows.advantage
    at, log_r = moves.rows.step, log_ratio_raw(moved).detach()
    kl = (moves.mean(moves.v) - moves.mean(moves.v_old)).square().mean(1) / (
        2 * moves.steps.std[at] ** 2
    )
    dppo = Dppo(
        name="dppo", ratio=log_ratio_raw, weight=uniform, divergence=1.1 * kl.median().item()
    )
    dropped = (kl >= dppo.divergence) & (((a > 0) & (log_r > 0)) | ((a < 0) & (log_r < 0)))
    result = objective(dppo, moved, moves.rows, moves.steps)
    (gradient,) = torch.autograd.grad(result.loss.sum(), v, retain_graph=True)
    (free,) = torch.autograd.grad(-(log_ratio_raw(moved).exp() * a).sum(), v)
    assert 0.1 < dropped.float().mean() < 0.5
    assert torch.equal(gradient.abs().amax(1) == 0, dropped)
    assert torch.allclose(gradient[~dropped], free[~dropped], rtol=1e-9, atol=0)
    assert torch.equal(result.high | result.low, kl >= dppo.divergence)


def test_dppo_has_no_clip_range():
    with pytest.raises(TypeError, match="high"):
        Dppo(name="dppo", ratio=log_ratio_raw, weight=uniform, divergence=1e-4, high=1e-4)
    with pytest.raises(
        ConfigError, match=r"divergence=0.0 is not positive; give a KL such as 1e-4"
    ):
        Dppo(name="dppo", ratio=log_ratio_raw, weight=uniform, divergence=0.0)
