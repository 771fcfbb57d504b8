"""What a run measured at each denoising step, averaged over its iterations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from grpo_guard.report.runs import Run, step_of
from grpo_guard.schema import record

RatioKind = Literal["raw", "norm", "own"]
"""The raw ratio, the one after RatioNorm, and the one that the run optimises."""


@record
class RatioStatistics:
    """Mean and spread of a ratio at each trained step, over all iterations."""

    step: Int[ndarray, " S"]
    """The denoising steps."""
    mean: Float[ndarray, " S"]
    """Mean of ratio - 1."""
    error: Float[ndarray, " S"]
    """Standard error of the mean."""
    std: Float[ndarray, " S"]
    """Standard deviation of the ratio over rows."""
    rows: float
    """Number of (sample, step) pairs that a step's mean and std have in each iteration."""
    iterations: Int[ndarray, " S"]
    """Number of iterations that trained the step."""

    @property
    def shift(self) -> Float[ndarray, " S"]:
        """The mean in standard deviations; 0 where the standard deviation is 0."""
        return _divide(self.mean, self.std)

    @property
    def significance(self) -> Float[ndarray, " S"]:
        """The mean in standard errors; 0 where the standard error is 0."""
        return _divide(self.mean, self.error)


@record
class ClippedShares:
    """Shares of the rows on which the clip acts, at each trained step over all iterations."""

    step: Int[ndarray, " S"]
    """The denoising steps that had rows with either sign of the advantage A."""
    high: Float[ndarray, " S"]
    """Share of the rows with A > 0 that lie above the clip range."""
    low: Float[ndarray, " S"]
    """Share of the rows with A < 0 that lie below the clip range."""

    @property
    def imbalance(self) -> float:
        """sum |high - low| / sum (high + low) over steps, in [0, 1]; NaN if the clip never acts.

        0 means that both sides are equal at every step, 1 that the clip only ever acts on one side.
        """
        total = float((self.high + self.low).sum())
        return float(np.abs(self.high - self.low).sum()) / total if total else np.nan


def step_values(run: Run, prefix: str) -> tuple[Int[ndarray, " S"], Float[ndarray, "N S"]]:
    """Return the steps of the keys `prefix/tt` and their values, one row per iteration.

    Iterations without any of the keys have no row; a key that an iteration lacks is NaN.
    """
    keys = sorted(run.keys(f"{prefix}/"), key=step_of)
    steps = np.array([step_of(key) for key in keys], dtype=int)
    values = run.table(keys)
    return steps, values[~np.isnan(values).all(1)]


def step_means(run: Run, prefix: str) -> tuple[Int[ndarray, " S"], Float[ndarray, " S"]]:
    """Return the steps of the keys `prefix/tt` and their means over iterations."""
    steps, values = step_values(run, prefix)
    return (steps, np.nanmean(values, 0)) if len(values) else (steps, np.empty(0))


def trained_steps(run: Run) -> tuple[Int[ndarray, " S"], Bool[ndarray, "N S"]]:
    """Return every step that some iteration trained, and which of them each iteration trained."""
    steps, shares = step_values(run, "grad_share")
    return steps, ~np.isnan(shares)


def steps_per_iteration(run: Run) -> int:
    """Return how many steps an iteration trains; 0 if none has trained yet."""
    return int(trained_steps(run)[1].sum(1).max(initial=0))


def train_same_steps(runs: Sequence[Run]) -> bool:
    """Whether all iterations of all runs trained the same steps."""
    trained = [trained_steps(run) for run in runs]
    first = trained[0][0]
    return all(mask.all() and np.array_equal(steps, first) for steps, mask in trained)


def ratio_statistics(run: Run, kind: RatioKind) -> RatioStatistics | None:
    """Return the statistics of a ratio; None if it was not measured or has always been 1.

    The standard error is the larger of two: one from the spread of rows, and one from the scatter
    of the iterations' means. The second allows for the rows of an iteration sharing an update.
    """
    steps, means = step_values(run, f"ratio_{kind}/mean")
    _, stds = step_values(run, f"ratio_{kind}/std")
    if stds.shape != means.shape or not np.nansum(stds) > 0:
        return None
    measured = ~np.isnan(means)
    count = measured.sum(0)
    mean = np.nanmean(means, 0)
    rows = rows_per_step(run, int(measured.sum(1).max()))
    std = np.sqrt(np.nanmean(np.square(stds), 0))
    between = np.sqrt(np.nansum(np.square(means - mean), 0) / np.maximum(count - 1, 1) / count)
    error = np.maximum(std / np.sqrt(rows * count), between)
    return RatioStatistics(step=steps, mean=mean, error=error, std=std, rows=rows, iterations=count)


def rows_per_step(run: Run, steps: int) -> float:
    """Return how many rows an iteration measures at each of the `steps` steps that it trains.

    The first update is left out because every ratio is 1 there (docs/adr/0006).
    """
    samples = run.setting("data.prompts") * run.setting("data.repeats")
    updates = run.setting("updates")
    after_first = (updates - 1) / updates if updates > 1 else 1.0
    return float(samples * after_first * (run.setting("steps_per_sample") or steps) / steps)


def clipped_shares(run: Run) -> ClippedShares | None:
    """Return how often the clip acts at steps with rows of either sign; None without any."""
    above, high = step_means(run, "clip/high_pos_adv")
    below, low = step_means(run, "clip/low_neg_adv")
    steps, ups, downs = np.intersect1d(above, below, return_indices=True)
    return ClippedShares(step=steps, high=high[ups], low=low[downs]) if len(steps) else None


def largest_over_smallest(values: Float[ndarray, " S"]) -> float:
    """Return the largest value over the smallest; NaN for fewer than two or a smallest of 0."""
    return float(values.max() / values.min()) if len(values) > 1 and values.min() > 0 else np.nan


def ratio_spread(run: Run, kind: RatioKind) -> float:
    """Return the largest over the smallest standard deviation of a ratio; NaN if not measured."""
    statistics = ratio_statistics(run, kind)
    return largest_over_smallest(statistics.std) if statistics else np.nan


def gradient_spread(run: Run) -> float:
    """Return the largest over the smallest share of the gradient.

    NaN unless all iterations trained the same steps: shares of different steps do not compare.
    """
    if not train_same_steps([run]):
        return np.nan
    return largest_over_smallest(step_means(run, "grad_share")[1])


def _divide(values: Float[ndarray, " S"], unit: Float[ndarray, " S"]) -> Float[ndarray, " S"]:
    """Divide, with 0 where the unit is 0."""
    return values * (unit > 0) / np.where(unit > 0, unit, 1)
