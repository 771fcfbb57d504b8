"""What one run, or several together, say of a claim."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from grpo_guard.report import arms, measure
from grpo_guard.report.measure import Estimate, Ratio
from grpo_guard.report.notation import estimate, give_or_take, number, percent, span, times
from grpo_guard.report.runs import Run, differences
from grpo_guard.types import record

CLEAR = 3.0
"""Standard errors from which a difference counts."""


@record
class Finding:
    """What one run (or pair of runs) says of a claim; `holds` is None where it cannot tell."""

    holds: bool | None
    text: str


def shifts_left(run: Run) -> Finding:
    """The mean of the raw ratio at the last trained step, against 1 and against the first."""
    found = measure.ratio(run, "raw")
    if found is None or len(found.step) < 2:
        return _untold(run, found)
    fall = Estimate(
        value=found.mean[-1] - found.mean[0], error=float(np.hypot(found.error[0], found.error[-1]))
    )
    below = int((found.significance < -CLEAR).sum())
    text = (
        f"{run.label}: raw mean - 1 = {_mean(found, 0)} at step {found.step[0]}, {_mean(found, -1)} at step"
        f" {found.step[-1]}; clearly below 1 at {below} of {len(found.step)} steps ({_basis(found)})"
    )
    return Finding(
        holds=bool(found.significance[-1] < -CLEAR and fall.significance < -CLEAR), text=text
    )


def spreads_late(run: Run) -> Finding:
    """The spread of the raw ratio at the last trained step, against the others."""
    found = measure.ratio(run, "raw")
    if found is None or len(found.step) < 2:
        return _untold(run, found)
    late = bool(found.std[-1] >= 2 * found.std[0] and found.std[-1] >= np.sort(found.std)[-2:][0])
    text = (
        f"{run.label}: raw std {number(found.std[0])} at step {found.step[0]}, {number(found.std[-1])} at step"
        f" {found.step[-1]}; largest over smallest {times(measure.spread(found.std))}"
    )
    return Finding(holds=late, text=text)


def is_centred(run: Run) -> Finding:
    """The mean of the normalised ratio, step by step; the raw one's beside it."""
    found, raw = measure.ratio(run, "norm"), measure.ratio(run, "raw")
    if found is None:
        return _untold(run)
    off = np.maximum(np.abs(found.shift) - 0.1, 0) * (np.abs(found.significance) > CLEAR)
    worst, beside = _worst(found), f"; raw: {_worst(raw)}" if raw else ""
    text = f"{run.label}: normalised mean is off by at most {worst}{beside} ({_basis(found)})"
    return Finding(holds=not off.any(), text=text)


def is_narrower(run: Run) -> Finding:
    """How unequal the spread is over steps, normalised and raw."""
    norm, raw = measure.ratio_spread(run, "norm"), measure.ratio_spread(run, "raw")
    if np.isnan(norm) or np.isnan(raw):
        return _untold(run)
    text = f"{run.label}: largest over smallest std {times(raw)} raw, {times(norm)} normalised"
    return Finding(holds=norm <= raw * 2 / 3, text=text)


def leaves_upper_idle(run: Run) -> Finding:
    """How often either side of the clip acts."""
    found = measure.clip(run)
    if found is None:
        return _untold(run)
    high, low = found.high.mean(), found.low.mean()
    text = (
        f"{run.label}: {percent(high)} of A > 0 above, {percent(low)} of A < 0 below; at the last step"
        f" {percent(found.high[-1])} and {percent(found.low[-1])}"
    )
    return Finding(holds=bool(low >= 0.01 and high <= low / 10), text=text)


def clips_evenly(run: Run) -> Finding:
    """How alike the two sides of the clip are, step by step."""
    found = measure.clip(run)
    if found is None:
        return _untold(run)
    high, low = found.high.mean(), found.low.mean()
    steps = (found.high + found.low) / 2
    text = (
        f"{run.label}: {percent(high)} of A > 0 above, {percent(low)} of A < 0 below (both together"
        f" {percent(steps.min())} to {percent(steps.max())} by step); difference of the sides over their sum"
        f" {percent(found.imbalance)}"
    )
    return Finding(holds=bool((high + low) / 2 >= 0.01 and found.imbalance <= 0.2), text=text)


def evens_gradient(vanilla: Run, guard: Run) -> Finding:
    """The spread of the gradient's shares over steps in both."""
    before, after = measure.gradient_spread(vanilla), measure.gradient_spread(guard)
    if not measure.same_steps([vanilla, guard]):
        text = f"{vanilla.label} and {guard.label} cannot be compared: not all their iterations trained the same steps"
        return Finding(holds=None, text=text)
    text = f"{times(before)} ({vanilla.label}) against {times(after)} ({guard.label})"
    return Finding(
        holds=None if np.isnan(before) or np.isnan(after) else after <= before / 2, text=text
    )


def over_optimises(run: Run) -> Finding:
    """The trend of the proxy and of every gold."""
    rise = measure.trend(measure.proxy(run)) if measure.proxy_name(run) else None
    golds = {name: measure.gold(run, name) for name in measure.gold_names([run])}
    falls = {name: change for name, curve in golds.items() if (change := measure.trend(curve))}
    if rise is None or not falls:
        return Finding(holds=None, text=f"{run.label}: fewer than four evaluations, or no gold")
    said = ", ".join(f"{name} {estimate(change)}" for name, change in falls.items())
    down = any(change.significance < -CLEAR for change in falls.values())
    text = f"{run.label}: change along the run, by its trend: proxy {estimate(rise)}; {said}"
    return Finding(holds=down and rise.significance > CLEAR, text=text)


def is_better(*runs: Run) -> Finding:
    """Every gold at matched proxy, Guard against vanilla."""
    found = {name: pair for name in measure.gold_names(runs) if (pair := arms.matched(runs, name))}
    if not found or not _same(runs, "reward"):
        return Finding(
            holds=None,
            text="needs vanilla and Guard on one reward, four evaluations each, at proxies that overlap",
        )
    clear = [difference.significance for _, _, difference in found.values()]
    proxies = arms.common_proxies(runs)
    lines = [
        f"over proxies {proxies[0]:.3f} to {proxies[-1]:.3f}",
        *(
            f"{name}: vanilla {a.value:.3f}, Guard {b.value:.3f}; {estimate(d)}"
            for name, (a, b, d) in found.items()
        ),
    ]
    return Finding(holds=max(clear) > CLEAR and min(clear) >= -CLEAR, text="\n".join(lines))


def _same(runs: Sequence[Run], part: str) -> bool:
    return not any(key.startswith(f"{part}.") for key in differences(runs))


def _untold(run: Run, found: Ratio | None = None) -> Finding:
    return Finding(
        holds=None, text=f"{run.label}: {'only one trained step' if found else 'not measured'}"
    )


def _mean(found: Ratio, at: int) -> str:
    return give_or_take(found.mean[at], found.error[at])


def _worst(found: Ratio) -> str:
    at = int(np.abs(found.shift).argmax())
    return f"{number(found.mean[at])} at step {found.step[at]}, {number(abs(found.shift[at]))} of its spread"


def _basis(found: Ratio) -> str:
    seen = (
        "one iteration"
        if found.iterations.max() == 1
        else f"each of {span(found.iterations)} iterations"
    )
    return f"{found.rows:.3g} rows a step in {seen}"
