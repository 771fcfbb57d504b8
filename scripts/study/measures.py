"""What the study measures of an arm, and how it writes numbers and verdicts."""

from __future__ import annotations

import numpy as np

from grpo_guard.report import statistics
from grpo_guard.report.arms import Arm, ArmSet
from grpo_guard.report.comparisons import MARGIN, replicate
from grpo_guard.report.curves import Curve, CurveOf
from grpo_guard.report.notation import count_of, format_interval
from grpo_guard.report.runs import Run
from grpo_guard.report.settling import Settled, settle
from grpo_guard.report.statistics import Interval, judge, seeds_to_decide

GOLD = "exact"
"""The main gold of the protocol."""


def measure_change(arm: Arm, curve_of: CurveOf, settled: Settled) -> Interval:
    """Measure the change of a score from before training to the last evaluation."""
    values, shared = replicate(arm, curve_of, settled.iterations)
    return statistics.estimate(values[:, :, -1] - values[:, :, 0], same_prompts=shared)


def measure_arm(arm: Arm, curve_of: CurveOf) -> Interval:
    """Measure the change of a score over the training of an arm, whatever the others did."""
    settled = settle(ArmSet(title="", arms=(arm,)))
    return measure_change(settled.arms[0], curve_of, settled)


def plain_curve(run: Run, key: str) -> Curve:
    """Return a metric as a curve whose prompts are not resampled."""
    iteration, value = run.series(key)
    return Curve(iteration=iteration, value=value, error=np.zeros(len(value)))


def distance_curve(run: Run) -> Curve:
    """Return the distance from the base model along a run."""
    return plain_curve(run, "eval/kl")


def write_change(interval: Interval) -> str:
    """Write a change with its sign and half its interval."""
    return format_interval(interval, signed=True)


def write_seeds(count: int) -> str:
    """Write a number of seeds."""
    return count_of(count, "seed", "seeds")


def write_verdict(difference: Interval, pairs: int, planned: int) -> str:
    """Write a verdict; an undecided one with the number of seeds in all that may decide.

    The number is left out before all seeds of the protocol are finished.
    """
    if pairs < planned:
        return "undecided"
    verdict = judge(difference, MARGIN, pairs)
    needed = seeds_to_decide(difference, pairs, MARGIN) if verdict == "undecided" else None
    return verdict if needed is None else f"{verdict}; extrapolated: {needed} seeds in all"
