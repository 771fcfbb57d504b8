"""How one run, or a pair of runs, bears on a claim of the paper."""

from __future__ import annotations

import numpy as np

from grpo_guard.report import per_step
from grpo_guard.report.curves import Estimate
from grpo_guard.report.notation import (
    format_factor,
    format_number,
    format_percent,
    format_range,
    format_with_error,
)
from grpo_guard.report.per_step import RatioStatistics
from grpo_guard.report.runs import Run
from grpo_guard.schema import record

CLEAR = 3.0
"""Standard errors from which a difference counts as clear."""


@record
class Finding:
    """The result of judging a claim on one run, or on a pair."""

    holds: bool | None
    """Whether the claim holds; None if these runs cannot decide it."""
    text: str
    """The numbers behind it."""
    is_undecided: bool = False
    """Whether it was measured and its interval leaves it open."""


def shifts_left(run: Run) -> Finding:
    """Compare the raw ratio's mean at the last trained step with 1 and with the first step."""
    raw = per_step.ratio_statistics(run, "raw")
    if raw is None or len(raw.step) < 2:
        return _undecided(run, raw)
    fall = Estimate(
        value=raw.mean[-1] - raw.mean[0], error=float(np.hypot(raw.error[0], raw.error[-1]))
    )
    below = int((raw.significance < -CLEAR).sum())
    text = (
        f"{run.label}: raw mean - 1 = {_format_mean(raw, 0)} at step {raw.step[0]},"
        f" {_format_mean(raw, -1)} at step {raw.step[-1]};"
        f" clearly below 1 at {below} of {len(raw.step)} steps ({_format_basis(raw)})"
    )
    holds = bool(raw.significance[-1] < -CLEAR and fall.significance < -CLEAR)
    return Finding(holds=holds, text=text)


def spreads_late(run: Run) -> Finding:
    """Compare the raw ratio's spread at the last trained step with that at the others."""
    raw = per_step.ratio_statistics(run, "raw")
    if raw is None or len(raw.step) < 2:
        return _undecided(run, raw)
    second_largest = np.sort(raw.std)[-2]
    text = (
        f"{run.label}: raw std {format_number(raw.std[0])} at step {raw.step[0]},"
        f" {format_number(raw.std[-1])} at step {raw.step[-1]};"
        f" largest over smallest {format_factor(per_step.largest_over_smallest(raw.std))}"
    )
    holds = bool(raw.std[-1] >= 2 * raw.std[0] and raw.std[-1] >= second_largest)
    return Finding(holds=holds, text=text)


def is_centred(run: Run) -> Finding:
    """Check that the normalised ratio's mean is 1 at every step; report the raw one beside it."""
    norm = per_step.ratio_statistics(run, "norm")
    raw = per_step.ratio_statistics(run, "raw")
    if norm is None:
        return _undecided(run)
    off = np.maximum(np.abs(norm.shift) - 0.1, 0) * (np.abs(norm.significance) > CLEAR)
    beside = f"; raw: {_format_worst(raw)}" if raw else ""
    text = (
        f"{run.label}: normalised mean is off by at most {_format_worst(norm)}{beside}"
        f" ({_format_basis(norm)})"
    )
    return Finding(holds=not off.any(), text=text)


def is_narrower(run: Run) -> Finding:
    """Compare how unequal the spread is over steps, normalised and raw."""
    norm = per_step.ratio_spread(run, "norm")
    raw = per_step.ratio_spread(run, "raw")
    if np.isnan(norm) or np.isnan(raw):
        return _undecided(run)
    text = (
        f"{run.label}: largest over smallest std {format_factor(raw)} raw,"
        f" {format_factor(norm)} normalised"
    )
    return Finding(holds=norm <= raw * 2 / 3, text=text)


def leaves_upper_idle(run: Run) -> Finding:
    """Check that the lower side of the clip acts and the upper one hardly ever does."""
    clipped = per_step.clipped_shares(run)
    if clipped is None:
        return _undecided(run)
    high, low = clipped.high.mean(), clipped.low.mean()
    text = (
        f"{run.label}: {format_percent(high)} of A > 0 above, {format_percent(low)} of A < 0 below;"
        f" at the last step {format_percent(clipped.high[-1])}"
        f" and {format_percent(clipped.low[-1])}"
    )
    return Finding(holds=bool(low >= 0.01 and high <= low / 10), text=text)


def clips_evenly(run: Run) -> Finding:
    """Check that both sides of the clip act alike at every step."""
    clipped = per_step.clipped_shares(run)
    if clipped is None:
        return _undecided(run)
    high, low = clipped.high.mean(), clipped.low.mean()
    both = (clipped.high + clipped.low) / 2
    text = (
        f"{run.label}: {format_percent(high)} of A > 0 above, {format_percent(low)} of A < 0 below"
        f" (both together {format_percent(both.min())} to {format_percent(both.max())} by step);"
        f" difference of the sides over their sum {format_percent(clipped.imbalance)}"
    )
    return Finding(holds=bool((high + low) / 2 >= 0.01 and clipped.imbalance <= 0.2), text=text)


def evens_gradient(vanilla: Run, guard: Run) -> Finding:
    """Compare how unequal the gradient's shares are over steps in both runs."""
    if not per_step.train_same_steps([vanilla, guard]):
        text = (
            f"{vanilla.label} and {guard.label} cannot be compared:"
            " not all their iterations trained the same steps"
        )
        return Finding(holds=None, text=text)
    before = per_step.gradient_spread(vanilla)
    after = per_step.gradient_spread(guard)
    text = (
        f"{format_factor(before)} ({vanilla.label}) against {format_factor(after)} ({guard.label})"
    )
    unknown = np.isnan(before) or np.isnan(after)
    return Finding(holds=None if unknown else after <= before / 2, text=text)


def _undecided(run: Run, statistics: RatioStatistics | None = None) -> Finding:
    reason = "only one trained step" if statistics else "not measured"
    return Finding(holds=None, text=f"{run.label}: {reason}")


def _format_mean(ratio: RatioStatistics, at: int) -> str:
    return format_with_error(ratio.mean[at], ratio.error[at])


def _format_worst(ratio: RatioStatistics) -> str:
    """Write the mean that lies farthest from 1 in units of its spread."""
    at = int(np.abs(ratio.shift).argmax())
    return (
        f"{format_number(ratio.mean[at])} at step {ratio.step[at]},"
        f" {format_number(abs(ratio.shift[at]))} of its spread"
    )


def _format_basis(ratio: RatioStatistics) -> str:
    """Write how many rows and iterations the statistics are from."""
    if ratio.iterations.max() == 1:
        iterations = "one iteration"
    else:
        iterations = f"each of {format_range(ratio.iterations)} iterations"
    return f"{ratio.rows:.0f} rows a step in {iterations}"
