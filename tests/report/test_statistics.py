"""Intervals, areas, peaks and verdicts against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from grpo_guard.report import statistics
from grpo_guard.report.statistics import MIN_SEEDS, Interval


def interval(value: float, half: float) -> Interval:
    return Interval(value=value, low=value - half, high=value + half)


def test_an_interval_over_seeds_is_that_of_their_mean() -> None:
    values = np.random.default_rng(3).normal(2, 0.5, 40)
    result = statistics.estimate(values[:, None], same_prompts=True)
    assert result.value == pytest.approx(values.mean())
    assert result.half_width == pytest.approx(1.96 * values.std() / np.sqrt(40), rel=0.1)
    assert result.low < result.value < result.high


def test_prompts_that_all_runs_share_do_not_average_out() -> None:
    """Four runs with the same error of the prompts have that error, not half of it."""
    error = np.random.default_rng(0).normal(0, 0.1, 2000)
    replicates = np.concatenate([[0.0], error])[None].repeat(4, 0)
    shared = statistics.estimate(replicates, same_prompts=True)
    apart = statistics.estimate(replicates, same_prompts=False)
    assert shared.half_width == pytest.approx(0.196, rel=0.1)
    assert apart.half_width == pytest.approx(0.098, rel=0.1)


def test_one_seed_without_an_error_has_no_interval() -> None:
    alone = statistics.estimate(np.full((1, 5), 0.3), same_prompts=False)
    assert alone.value == 0.3
    assert math.isnan(alone.low)
    assert math.isnan(alone.high)


def test_seeds_without_the_number_are_left_out() -> None:
    values = np.array([[1.0, 1.0], [np.nan, 1.0], [3.0, np.nan]])
    assert statistics.estimate(values, same_prompts=True).value == 2
    assert math.isnan(statistics.estimate(np.full((2, 3), np.nan), same_prompts=True).value)


def test_resampled_prompts_keep_the_curve_first_and_pair_by_prompt() -> None:
    by_prompt = np.random.default_rng(0).random((3, 50))
    value = by_prompt.mean(1)
    drawn = statistics.resample_prompts(value, value, by_prompt, seed=1)
    assert drawn[0] == pytest.approx(value)
    assert drawn[1:].std(0) == pytest.approx(by_prompt.std(1) / np.sqrt(50), rel=0.2)
    # the same prompts are drawn for a curve that lies 1 higher, whatever its seed
    higher = statistics.resample_prompts(value + 1, value, by_prompt + 1, seed=2)
    assert higher - drawn == pytest.approx(np.ones_like(drawn))


def test_a_prompt_without_a_score_is_left_out_of_the_resamples_that_hold_it() -> None:
    by_prompt = np.array([[1.0, 1.0, 1.0, np.nan], [0.0, 1.0, 0.0, 1.0]])
    drawn = statistics.resample_prompts(np.ones(2), np.ones(2), by_prompt, seed=1)
    with_scores = np.isfinite(drawn[1:, 0])
    assert with_scores.sum() > 190
    assert drawn[1:, 0][with_scores] == pytest.approx(np.ones(with_scores.sum()))
    assert len(set(drawn[1:, 1].round(6))) == 5


def test_without_scores_by_prompt_the_noise_has_the_standard_error() -> None:
    drawn = statistics.resample_prompts(np.ones(2), np.array([0.1, np.nan]), None, seed=5)
    assert drawn[1:, 0].std() == pytest.approx(0.1, rel=0.15)
    assert (drawn[:, 1] == 1).all()


def test_an_area_is_the_mean_height_where_both_curves_passed() -> None:
    x = np.array([0.0, 1.0, 2.0])
    assert statistics.area_between(x, x, x + 1, x + 1.5) == pytest.approx(0.5)
    # between x = 1 and 2, the first curve falls from 1 to 0 and the second lies at 2
    assert statistics.area_between(
        x, np.array([0.0, 1.0, 0.0]), np.array([1.0, 5.0]), np.array([2.0, 2.0])
    ) == pytest.approx(1.5)


def test_an_area_does_not_depend_on_the_order_of_the_points() -> None:
    x, y = np.array([0.0, 2.0, 1.0]), np.array([0.0, 4.0, 1.0])
    assert statistics.area_between(x, y, x[::-1], y[::-1] + 1) == pytest.approx(1)


def test_curves_without_a_common_range_have_no_area() -> None:
    x = np.array([0.0, 1.0])
    assert math.isnan(statistics.area_between(x, x, x + 1, x))
    assert math.isnan(statistics.area_between(x, x, np.empty(0), np.empty(0)))


def test_a_peak_is_that_of_the_mean_over_seeds() -> None:
    values = np.array([[0.4, 0.9, 0.5, 0.1], [0.4, 0.3, 0.7, 0.5], [0.4, 0.3, 0.7, 0.3]])
    peak = statistics.find_peak(values[:, None], same_prompts=True)
    assert peak.index == 2
    assert peak.gain.value == pytest.approx(0.7 / 3)
    assert peak.loss.value == pytest.approx(-1 / 3)


@pytest.mark.parametrize(
    ("difference", "seeds", "verdict"),
    [
        (interval(0.1, 0.05), 8, "shows"),
        (interval(0.1, 0.05), MIN_SEEDS - 1, "undecided"),
        (interval(0.02, 0.01), 8, "shows"),
        (interval(0.06, 0.065), 8, "undecided"),
        (interval(0.0, 0.04), 8, "no difference that matters"),
        (interval(-0.02, 0.01), 8, "no difference that matters"),
        (interval(0.0, 0.04), MIN_SEEDS - 1, "undecided"),
        (interval(-0.02, 0.04), 8, "does not show"),
        (interval(-0.1, 0.04), 8, "does not show"),
        (interval(0.04, 0.05), 8, "undecided"),
        (interval(0.04, math.nan), 8, "undecided"),
    ],
)
def test_verdicts(difference: Interval, seeds: int, verdict: str) -> None:
    assert statistics.judge(difference, 0.05, seeds) == verdict


def test_only_seeds_that_have_the_number_count_for_a_verdict() -> None:
    """Two of eight pairs passed the same proxies."""
    replicates = np.full((8, 2), math.nan)
    replicates[:2] = [[0.10, 0.11], [0.10, 0.09]]
    difference = statistics.estimate(replicates, same_prompts=True)
    assert difference.seeds == 2
    assert difference.low > 0
    assert statistics.judge(difference, 0.05, 8) == "undecided"
    assert statistics.judge(replace(difference, seeds=None), 0.05, 8) == "shows"


@pytest.mark.parametrize(
    ("difference", "seeds", "needed"),
    [
        (interval(0.05, 0.1), 4, 9),
        (interval(0.0, 0.1), 4, 9),
        (interval(0.05, 0.1), 1, 4),
        (interval(0.025, 9.0), 8, None),
        (interval(0.1, 0.05), 1, MIN_SEEDS),
        (interval(0.1, 0.1), 8, 9),
        (interval(0.1, math.nan), 8, None),
    ],
)
def test_seeds_that_decide_follow_from_the_width_of_intervals(
    difference: Interval, seeds: int, needed: int | None
) -> None:
    assert statistics.seeds_to_decide(difference, seeds, 0.05) == needed


def test_more_seeds_decide_as_often_as_planned() -> None:
    """With the number of seeds that was predicted, the interval no longer holds 0."""
    random = np.random.default_rng(2)
    few = statistics.estimate(random.normal(0.05, 0.1, (6, 1)), same_prompts=True)
    needed = statistics.seeds_to_decide(few, 6, 0.05)
    assert needed is not None
    many = random.normal(few.value, 0.1, (4 * needed, 1))
    assert statistics.judge(statistics.estimate(many, same_prompts=True), 0.05, 9) != "undecided"


def test_runs_are_paired_by_seed_and_else_in_order() -> None:
    assert statistics.pair_seeds([1, 2, 5], [5, 2, 7]) == [(1, 1), (2, 0)]
    assert statistics.pair_seeds([1, 2, 3], [7, 8]) == [(0, 0), (1, 1)]


@pytest.mark.parametrize("other", [[0, 0, 0], [0, 1, 2]])
def test_no_run_is_paired_twice_if_seeds_are_not_known(other: list[int]) -> None:
    """Runs whose configuration has no seed count as seed 0."""
    assert statistics.pair_seeds([0, 0, 0], other) == [(0, 0), (1, 1), (2, 2)]


def test_common_iterations() -> None:
    curves = [np.array([0, 10, 20, 30]), np.array([0, 10, 30]), np.array([0, 5, 10, 30])]
    assert statistics.common_iterations(curves).tolist() == [0, 10, 30]


@pytest.mark.parametrize("seeds", [3, 8])
def test_an_interval_over_few_seeds_covers_as_often_as_it_says(seeds: int) -> None:
    """Without the stretch, 95 % intervals over 3 seeds cover 75 % of the time."""
    random = np.random.default_rng(seeds)
    draws = [
        statistics.estimate(random.standard_normal((seeds, 1)), same_prompts=True)
        for _ in range(400)
    ]
    covered = np.mean([one.low <= 0 <= one.high for one in draws])
    assert 0.91 < covered < 0.98


def test_only_differences_between_seeds_are_stretched() -> None:
    assert statistics.stretch_of_few(1) == 1
    assert statistics.stretch_of_few(3) == pytest.approx(4.3027 / 1.95996 * 1.5**0.5, rel=1e-4)
    assert statistics.stretch_of_few(1000) == pytest.approx(1, abs=2e-3)
    prompts = np.random.default_rng(0).standard_normal((1, 2001))
    prompts[:, 0] = 0
    alone = statistics.estimate(prompts, same_prompts=True)
    together = statistics.estimate(np.repeat(prompts, 4, 0), same_prompts=True)
    assert together.half_width == pytest.approx(alone.half_width, rel=0.05)


def replicate_scores(
    seeds: int, of_seeds: float, of_prompts: float, random: np.random.Generator
) -> np.ndarray:
    """Return a score of some seeds, whose prompts err alike in every resample."""
    own = random.normal(0, of_seeds, (seeds, 1))
    return own - own.mean() + np.append(0, random.normal(0, of_prompts, 200))


def test_the_part_of_shared_prompts_does_not_shrink_with_seeds() -> None:
    random = np.random.default_rng(4)
    scores = replicate_scores(8, of_seeds=0.1, of_prompts=0.02, random=random)
    mixed = statistics.estimate(scores, same_prompts=True)
    assert mixed.prompt_half_width == pytest.approx(1.96 * 0.02, rel=0.15)
    apart = statistics.estimate(scores, same_prompts=False)
    assert apart.prompt_half_width == 0
    needed = statistics.seeds_to_decide(replace(mixed, value=0.0), 8, 0.05)
    without = statistics.seeds_to_decide(replace(mixed, value=0.0, prompt_half_width=0.0), 8, 0.05)
    assert needed is not None
    assert without is not None
    assert needed > without
    many = statistics.estimate(replicate_scores(needed, 0.1, 0.02, random), same_prompts=True)
    assert many.half_width == pytest.approx(0.05, rel=0.2)


def test_no_number_of_seeds_decides_what_the_prompts_leave_open() -> None:
    scores = replicate_scores(8, 0.1, 0.05, np.random.default_rng(4))
    wide = replace(statistics.estimate(scores, same_prompts=True), value=0.0)
    assert statistics.seeds_to_decide(wide, 8, 0.05) is None


def test_noise_that_seeds_do_not_share_is_no_part_of_the_prompts() -> None:
    random = np.random.default_rng(0)
    scores = np.concatenate([np.zeros((8, 1)), random.normal(0, 0.1, (8, 200))], axis=1)
    assert statistics.estimate(scores, same_prompts=True).prompt_half_width < 0.045
