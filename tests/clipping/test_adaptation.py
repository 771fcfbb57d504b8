"""The clip range follows the ratios: multipliers scale it, and a target share lies outside it."""

import dataclasses
import math

import pytest
import torch

from grpo_guard.clipping import adapt, scale_limits
from grpo_guard.clipping.clip import Clip
from grpo_guard.clipping.fixed import Fixed
from grpo_guard.clipping.target_fraction import TargetFraction
from grpo_guard.clipping.weight import uniform
from grpo_guard.ratio import log_ratio_norm
from grpo_guard.schema import ConfigError
from grpo_guard.sde import schedule
from grpo_guard.sde.flow import Flow
from grpo_guard.sde.window import Window
from grpo_guard.types import Drift, Objective, Replay, Rows, concatenate, map_tensors

STEPS = schedule(Flow(level=0.7, window=Window()), torch.tensor([1.0, 0.7, 0.4, 0.1, 0.0]))
PER_STEP = TargetFraction(fraction=0.2, per_step=True, memory=0.5)


def make_clip(adaptation, low=1e-4):
    return Clip(
        name="tried",
        ratio=log_ratio_norm,
        weight=uniform,
        adaptation=adaptation,
        high=1e-4,
        low=low,
    )


def draw_replay(sizes, generator, rows=4000):
    """Draw rows whose normalised log-ratios are Gaussian, with another size at every step."""
    step = torch.arange(rows * len(sizes)) % len(sizes)
    along = torch.randn(len(step), generator=generator) * torch.tensor(sizes)[step]
    return make_replay(step, along)


def make_replay(step, along):
    """Make a replay of rows whose moves along the noise are given."""
    ones = torch.ones_like(along)
    drift = Drift(along=along, square=ones, std=ones, gain=ones, dimensions=65_536)
    return Replay(
        rows=Rows(sample=torch.arange(len(step)), step=step, advantage=ones),
        drift=drift,
        objective=Objective(
            loss=ones, log_ratio=log_ratio_norm(drift), high=ones > 2, low=ones > 2
        ),
        penalty=0 * ones,
        gradient=ones,
    )


def shares_outside(clip, multipliers, replay):
    """Return the share of the rows outside the clip range, over all steps and at each of three."""
    limits = scale_limits(clip.limits(replay.drift.dimensions, len(STEPS)), multipliers)
    result = clip(replay.drift, replay.rows, STEPS, limits)
    outside = (result.high | result.low).float()
    each_step = [outside[replay.rows.step == step].mean().item() for step in range(3)]
    return outside.mean().item(), each_step


def test_limits_without_multipliers_stay():
    limits = make_clip(Fixed(), low=0.5e-4).limits(65_536, 3)
    for scaled, limit in zip(scale_limits(limits, ()), limits, strict=True):
        assert torch.equal(scaled, limit)


def test_multipliers_scale_both_limits_of_their_step():
    low, high = scale_limits(make_clip(Fixed(), low=0.5e-4).limits(65_536, 3), (0.5, 1.0, 4.0))
    assert low.dtype == high.dtype == torch.float64
    assert torch.expm1(low).tolist() == pytest.approx([-0.25e-4, -0.5e-4, -2e-4], rel=1e-3)
    assert torch.expm1(high).tolist() == pytest.approx([0.5e-4, 1e-4, 4e-4], rel=1e-3)


@pytest.mark.parametrize("per_step", [True, False])
@pytest.mark.parametrize("low", [1e-4, 0.5e-4])
def test_a_range_meets_its_target(per_step, low, generator):
    clip = make_clip(TargetFraction(fraction=0.2, per_step=per_step, memory=0.5), low)
    sizes = [1e-5, 3e-4, 2e-3]
    multipliers = adapt(clip, (), draw_replay(sizes, generator), STEPS)
    overall, each_step = shares_outside(clip, multipliers, draw_replay(sizes, generator))
    assert overall == pytest.approx(0.2, abs=0.02)
    assert (max(each_step) - min(each_step) < 0.05) == per_step
    below, above = scale_limits(clip.limits(65_536, 4), multipliers)
    assert (below / above).tolist() == pytest.approx([-low / 1e-4] * 4, rel=1e-3)
    assert (len(set(above[:3].tolist())) == 3) == per_step


def test_ranges_are_averaged_and_stay_if_the_policy_has_not_moved(generator):
    """With memory 0.5, ratios that are 16 times as large make the range sqrt(16) times as wide."""
    clip = make_clip(PER_STEP)
    replay = draw_replay([1e-4] * 3, generator)
    still = map_tensors(replay, lambda x: 0 * x if x.is_floating_point() else x)
    larger = make_replay(replay.rows.step, 16 * replay.drift.along)
    assert adapt(clip, (), still, STEPS) == (1.0,) * 4
    first = adapt(clip, (), replay, STEPS)
    expected = [4 * multiplier for multiplier in first[:3]]
    assert adapt(clip, first, larger, STEPS)[:3] == pytest.approx(expected, rel=1e-5)
    assert adapt(clip, first, still, STEPS) == first


def test_the_first_range_of_a_step_is_taken_as_it_is(generator):
    """Also if other steps were trained before, as in a window that moves."""
    clip = make_clip(PER_STEP)
    replay = draw_replay([1e-4] * 3, generator)
    whole = adapt(clip, (), replay, STEPS)
    for number in range(3):
        others = [m if i != number else 1.0 for i, m in enumerate(whole)]
        assert adapt(clip, tuple(others), replay, STEPS)[number] == whole[number]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("per_step", [True, False])
def test_a_row_that_is_not_finite_does_not_count(per_step, broken, generator):
    """One such row would otherwise make the range NaN for good."""
    clip = make_clip(TargetFraction(fraction=0.2, per_step=per_step, memory=0.5))
    replay = draw_replay([1e-4] * 3, generator)
    log_ratio = replay.objective.log_ratio.clone()
    log_ratio[0] = broken
    objective = dataclasses.replace(replay.objective, log_ratio=log_ratio)
    adapted = adapt(clip, (), dataclasses.replace(replay, objective=objective), STEPS)
    assert adapted == pytest.approx(adapt(clip, (), replay, STEPS), rel=1e-3)
    assert adapt(clip, adapted, replay, STEPS) == pytest.approx(adapted, rel=1e-3)
    all_broken = dataclasses.replace(objective, log_ratio=0 * log_ratio + broken)
    spoiled = dataclasses.replace(replay, objective=all_broken)
    assert adapt(clip, adapted, spoiled, STEPS) == adapted


def test_the_range_follows_the_ratios_that_were_clipped(choice, generator):
    """With guard_upstream a row's ratio depends on the rows beside it in its microbatch."""
    target = TargetFraction(fraction=0.2, per_step=False, memory=0.0)
    clip = dataclasses.replace(choice("clipping", "guard_upstream"), adaptation=target)
    parts = [draw_replay([size] * 3, generator) for size in (1e-4, 1e-3)]
    limits = clip.limits(65_536, len(STEPS))
    replays = [
        dataclasses.replace(part, objective=clip(part.drift, part.rows, STEPS, limits))
        for part in parts
    ]
    multipliers = adapt(clip, (), concatenate(replays), STEPS)
    low, high = scale_limits(limits, multipliers)
    ratios = torch.cat([replay.objective.log_ratio for replay in replays])
    at = torch.cat([replay.rows.step for replay in replays])
    outside = ((ratios < low.to(ratios)[at]) | (ratios > high.to(ratios)[at])).float().mean()
    assert outside == pytest.approx(target.fraction, abs=0.01)


def test_a_fixed_range_stays(generator):
    clip = make_clip(Fixed())
    replay = draw_replay([1.0] * 3, generator)
    assert adapt(clip, (), replay, STEPS) == ()


def test_dppo_adapts_nothing(choice, generator):
    """It has no clip range: no ratio yields a multiplier, and no limit changes a loss."""
    dppo = choice("clipping", "dppo")
    replay = draw_replay([1.0] * 3, generator)
    limits = dppo.limits(replay.drift.dimensions, len(STEPS))
    wider = scale_limits(limits, (10.0,) * 4)
    assert adapt(dppo, (), replay, STEPS) == ()
    # All rows are within the trust region, so that none is dropped.
    near = dataclasses.replace(replay.drift, square=0 * replay.drift.square)
    loss = dppo(near, replay.rows, STEPS, limits).loss
    assert (loss != 0).all()
    assert torch.equal(loss, dppo(near, replay.rows, STEPS, wider).loss)


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
