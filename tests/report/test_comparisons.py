"""What training changed in an arm, how two arms differ, and which runs are left out."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from synthetic_runs import FALLING, LEVEL, RISING, make_run

from grpo_guard.report import curves
from grpo_guard.report.arms import group_arms
from grpo_guard.report.comparisons import Comparison, compare_arms, measure_change, replicate
from grpo_guard.report.results import analyse_runs
from grpo_guard.report.runs import Run
from grpo_guard.report.settling import Settled, settle

SEEDS = range(1, 6)


def seeds_of(variant: str, golds: Sequence[float], proxy: Sequence[float] = RISING) -> list[Run]:
    """Make five runs whose golds lie .01 apart."""
    golds_of = {seed: {"facts": tuple(np.array(golds) + 0.01 * seed)} for seed in SEEDS}
    return [make_run(variant, golds=g, proxy=proxy, seed=seed) for seed, g in golds_of.items()]


def compare(vanilla: Sequence[Run], guard: Sequence[Run]) -> Comparison:
    settled = settle(group_arms([*vanilla, *guard])[0])
    comparison = compare_arms(*settled.pairs[0], settled)
    assert comparison is not None
    return comparison


def settle_runs(runs: Sequence[Run]) -> Settled:
    return settle(group_arms(runs)[0])


def test_changes_are_from_the_first_to_the_last_evaluation() -> None:
    settled = settle_runs(seeds_of("vanilla", FALLING))
    change = measure_change(settled.arms[0], settled)
    assert change is not None
    assert change.proxy.value == pytest.approx(0.1)
    assert change.golds["facts"].value == pytest.approx(-0.3)
    assert change.peaks["facts"].index == 0
    assert change.over_optimises == "shows"


def test_arms_are_paired_by_seed() -> None:
    """The golds of seeds differ by much more than those of a pair, which the pairs take out."""
    spread = [0.0, 0.1, -0.1, 0.05, -0.05]
    runs = [
        make_run(variant, golds={"clean": tuple(np.linspace(0.5, 0.4 + gap + offset, 8))}, seed=s)
        for variant, gap in (("vanilla", 0.0), ("guard", 0.02))
        for s, offset in enumerate(spread)
    ]
    difference = compare(runs[:5], runs[5:]).golds["clean"]
    assert difference.at_end.value == pytest.approx(0.02)
    assert difference.at_end.half_width < 0.01
    assert difference.verdict == "shows"


def test_differences_at_equal_images_proxy_and_distance() -> None:
    """Guard has the same gold over the proxy, but gains half as much proxy."""
    guard = seeds_of("guard", np.linspace(0.8, 0.65, 8), proxy=tuple(np.linspace(0.4, 0.45, 8)))
    difference = compare(seeds_of("vanilla", FALLING), guard).golds["facts"]
    assert difference.at_end.value == pytest.approx(0.15)
    assert difference.over_images.value == pytest.approx(0.075, abs=0.01)
    assert difference.at_proxy.value == pytest.approx(0, abs=0.01)
    assert np.isnan(difference.at_distance.value)


def test_distances_are_compared_by_their_root() -> None:
    runs = [*seeds_of("vanilla", FALLING), *seeds_of("guard", FALLING)]
    for run in runs:
        scale = 4 if run.variant == "guard" else 1
        for row in run.rows:
            row["eval/kl"] = scale * row["iteration"] ** 2  # type: ignore[index]
    difference = compare(runs[:5], runs[5:]).golds["facts"]
    # guard is twice as far at the same gold, so it lies higher at the same distance
    grid = np.linspace(0, 7, 200)
    expected = np.mean(np.interp(grid / 2, range(8), FALLING) - np.interp(grid, range(8), FALLING))
    assert difference.at_distance.value == pytest.approx(expected, abs=0.01)


def test_an_answer_has_the_difference_at_equal_proxy_and_at_equal_distance() -> None:
    runs = [*seeds_of("vanilla", FALLING), *seeds_of("guard", LEVEL)]
    [answer] = analyse_runs(runs)[0].answers
    assert re.search(r" The difference is \+0\.1\d+( ± 0\.\d+)? at equal proxy\.$", answer.sentence)
    for run in runs:
        for row in run.rows:
            row["eval/kl"] = row["iteration"] ** 2  # type: ignore[index]
    [answer] = analyse_runs([replace(run) for run in runs])[0].answers
    assert re.search(r" at equal proxy and \+0\.1\S+.* at equal distance from the base\.$",
                     answer.sentence)  # fmt: skip


def test_an_undecided_difference_says_how_many_seeds_would_decide() -> None:
    vanilla, guard = ([make_run(v, golds={"facts": LEVEL})] for v in ("vanilla", "guard"))
    difference = compare(vanilla, guard).golds["facts"]
    assert difference.verdict == "undecided"
    assert difference.seeds_needed is not None
    [answer] = analyse_runs([*vanilla, *guard])[0].answers
    line = f"Undecided with 1 seed: at least {difference.seeds_needed - 1} more are needed."
    assert line in answer.sentence


@pytest.mark.parametrize(("count", "roughly"), [(2, "very roughly"), (3, "about")])
def test_a_number_of_seeds_that_is_extrapolated_is_called_so(count: int, roughly: str) -> None:
    vanilla = seeds_of("vanilla", LEVEL)[:count]
    guard = [
        make_run("guard", golds={"facts": (*LEVEL[:-1], LEVEL[-1] + gain)}, seed=seed)
        for seed, gain in zip(SEEDS[:count], (0.2, 0.05, 0.1), strict=False)
    ]
    result = analyse_runs([*vanilla, *guard])[0]
    needed = result.comparisons[0].golds["facts"].seeds_needed
    assert needed is not None
    [answer] = result.answers
    line = (
        f" Undecided with {count} seeds: {roughly} {needed - count} more would decide, if mean and"
        " spread stayed as they are."
    )
    assert line in answer.sentence


def test_intervals_do_not_depend_on_the_other_arms() -> None:
    guard = seeds_of("guard", FALLING)
    alone = settle_runs(guard)
    beside = settle_runs([*seeds_of("vanilla", LEVEL), *guard])
    assert beside.arms[1].variant == "guard"
    ends = []
    for settled, arm in ((alone, alone.arms[0]), (beside, beside.arms[1])):
        change = measure_change(arm, settled)
        assert change is not None
        ends.append((change.golds["facts"].low, change.golds["facts"].high))
    assert ends[0] == ends[1]


def test_runs_that_have_hardly_begun_are_left_out_with_a_line() -> None:
    runs = seeds_of("vanilla", FALLING)
    begun = replace(make_run(seed=9), label="vanilla, seed 9", rows=make_run().rows[:2])
    begun = replace(begun, folder=begun.folder / "other")
    named = [replace(run, folder=run.folder / str(i)) for i, run in enumerate(runs)]
    settled = settle_runs([*named, begun])
    assert settled.arms[0].seeds == tuple(SEEDS)
    assert settled.iterations.tolist() == list(range(8))
    assert settled.left_out == (
        "vanilla, seed 9 is left out of means and comparisons: its last evaluation is at iteration"
        " 1, before 7.",
    )


def test_a_run_that_was_repeated_counts_once_and_is_named() -> None:
    runs = [make_run(seed=1, output=f"runs/{name}") for name in ("first", "again")]
    runs.append(make_run(seed=2))
    settled = settle_runs(runs)
    assert settled.arms[0].seeds == (1, 2)
    assert settled.arms[0].runs[0] is runs[0]
    [line] = settled.left_out
    assert line.endswith(
        "is left out of means and comparisons: it repeats the seed of another run."
    )


def test_runs_of_other_lengths_are_compared_as_far_as_both_came() -> None:
    long = make_run(golds={"facts": FALLING})
    short = make_run("guard", golds={"facts": FALLING})
    short = replace(short, rows=short.rows[:5], folder=short.folder / "short")
    comparison = compare([long], [short])
    assert comparison.golds["facts"].at_end.value == 0
    assert "iteration 4" in analyse_runs([long, short])[0].answers[0].sentence


def test_stopping_early_is_chosen_by_another_gold() -> None:
    golds = {"exact": FALLING, "pickscore_gold": (1, 2, 5, 4, 3, 2, 1, 0)}
    settled = settle_runs([make_run(golds=golds)])
    change = measure_change(settled.arms[0], settled)
    assert change is not None
    assert change.stops["exact"].value == pytest.approx(FALLING[2] - FALLING[0])
    assert "pickscore_gold" not in change.stops


def test_scores_of_all_prompts_are_resampled_together() -> None:
    """Guard is better by .1 on every prompt, so the prompts leave no doubt."""
    random = np.random.default_rng(0)
    hard = random.random((8, 20)) / 2

    def with_prompts(variant: str, gain: float, seed: int) -> Run:
        scores = hard + gain
        run = make_run(variant, golds={"facts": tuple(scores.mean(1))}, seed=seed)
        return replace(run, prompt_scores={i: {"eval/gold/facts": scores[i]} for i in range(8)})

    runs = [with_prompts(v, g, s) for v, g in (("vanilla", 0), ("guard", 0.1)) for s in range(3)]
    difference = compare(runs[:3], runs[3:]).golds["facts"]
    assert difference.at_end.value == pytest.approx(0.1)
    assert difference.at_end.half_width < 1e-6


def test_one_run_without_scores_of_prompts_does_not_narrow_an_interval() -> None:
    """The prompts that the other runs share are the same sample for all of them."""
    random = np.random.default_rng(0)
    effect = random.standard_normal((8, 20)) / 4

    def with_prompts(variant: str, seed: int) -> Run:
        scores = effect * (variant == "guard") + 0.5
        run = make_run(variant, golds={"facts": tuple(scores.mean(1))}, seed=seed)
        return replace(run, prompt_scores={i: {"eval/gold/facts": scores[i]} for i in range(8)})

    def measure_width(vanilla: Sequence[Run]) -> float:
        guard = [with_prompts("guard", seed) for seed in range(8)]
        return compare(vanilla, guard).golds["facts"].at_end.half_width

    whole = [with_prompts("vanilla", seed) for seed in range(8)]
    without = [replace(whole[0], prompt_scores={}), *whole[1:]]
    assert measure_width(without) == pytest.approx(measure_width(whole), rel=0.2)
    nothing = [replace(run, prompt_scores={}) for run in whole]
    assert measure_width(nothing) == pytest.approx(measure_width(whole), rel=0.2)


def test_scores_of_a_run_have_noise_of_their_own() -> None:
    """Without scores of prompts, a gold's noise says nothing of the proxy's."""
    run = make_run(proxy=LEVEL, golds={"facts": LEVEL})
    [arm] = settle_runs([run]).arms
    proxy, gold = (
        replicate(arm, curves.score_of(name), np.arange(8))[0][0, 1:, -1]
        for name in ("proxy", "facts")
    )
    assert abs(np.corrcoef(proxy, gold)[0, 1]) < 0.2


def test_resamples_are_forgotten_with_their_run() -> None:
    runs = seeds_of("vanilla", FALLING)
    settled = settle_runs(runs)
    measure_change(settled.arms[0], settled)
    old = weakref.ref(runs[0])
    del runs, settled
    gc.collect()
    assert old() is None
