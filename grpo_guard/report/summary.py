"""The summary table: one row per quantity, one column per arm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from grpo_guard.report import per_step
from grpo_guard.report.arms import Arm, proxy_names
from grpo_guard.report.comparisons import SELECTOR, Difference, distance_at
from grpo_guard.report.curves import PROXY
from grpo_guard.report.notation import (
    format_duration,
    format_factor,
    format_interval,
    format_number,
    format_percent,
    format_range,
    format_with_error,
)
from grpo_guard.report.per_step import RatioKind
from grpo_guard.report.results import SetResult
from grpo_guard.report.runs import Run
from grpo_guard.report.settling import Settled
from grpo_guard.report.statistics import Interval, estimate
from grpo_guard.schema import record

FormatCell = Callable[[Arm], str]
"""Writes the value of one quantity in an arm, or "-" if its runs did not measure it."""

AREAS: Mapping[str, Callable[[Difference], Interval]] = {
    "at the end": lambda difference: difference.at_end,
    "mean over images": lambda difference: difference.over_images,
    "at equal proxy": lambda difference: difference.at_proxy,
    "at equal sqrt(KL)": lambda difference: difference.at_distance,
}


@record
class TableSection:
    """Rows of the summary under one heading."""

    title: str
    """The heading."""
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    """Name of each quantity, and its value in every arm."""


def summarise(result: SetResult) -> tuple[TableSection, ...]:
    """Return every quantity that is a single number per arm, with its 95 % interval."""
    settled = result.settled
    last = settled.iterations[-1] if len(settled.iterations) else 0
    sections: dict[str, Mapping[str, FormatCell]] = {
        "Runs": _of_kept_runs(settled, RUNS, or_all=True),
        f"Held-out prompts, change up to iteration {last}": dict(_change_rows(result)),
        "Where each gold peaks, and what is lost from there to the end": dict(_peak_rows(result)),
        f"Change if each run stops where {SELECTOR} peaks": dict(_stop_rows(result)),
        f"Golds minus those of {settled.arms[0].label}": dict(_difference_rows(result)),
        "Ratios, averaged over all iterations": _of_kept_runs(settled, RATIOS),
        "Clip and gradient, averaged over all iterations": _of_kept_runs(
            settled, CLIP_AND_GRADIENT
        ),
    }
    return tuple(
        TableSection(
            title=title,
            rows=tuple(
                (name, tuple(map(cell, result.arm_set.arms))) for name, cell in rows.items()
            ),
        )
        for title, rows in sections.items()
        if rows
    )


def _of_kept_runs(
    settled: Settled, cells: Mapping[str, FormatCell], *, or_all: bool = False
) -> dict[str, FormatCell]:
    """Return cells that show those runs of an arm that means are taken over.

    Of an arm without any they show "-", or all its runs with `or_all`.
    """

    def choose(cell: FormatCell) -> FormatCell:
        def on_kept(arm: Arm) -> str:
            kept = settled.arm_of(arm) or (arm if or_all else None)
            return cell(kept) if kept else "-"

        return on_kept

    return {name: choose(cell) for name, cell in cells.items()}


def _change_rows(result: SetResult) -> Iterator[tuple[str, FormatCell]]:
    """Yield rows for the proxy, for every gold and for the distance from the base model."""

    def proxy(arm: Arm) -> str:
        change = result.change_of(arm)
        return format_interval(change.proxy, signed=True) if change else "-"

    yield f"proxy: {' or '.join(proxy_names(result.arm_set.arms)) or PROXY}", proxy
    for name in result.settled.golds:
        yield f"gold: {name}", _gold_cell(result, name)
    yield "distance from the base, sqrt(KL)", _distance_cell(result.settled)


def _gold_cell(result: SetResult, name: str) -> FormatCell:
    def cell(arm: Arm) -> str:
        change = result.change_of(arm)
        return format_interval(change.golds[name], signed=True) if change else "-"

    return cell


def _peak_rows(result: SetResult) -> Iterator[tuple[str, FormatCell]]:
    for name in result.settled.golds:
        yield f"{name}: peak at iteration", _peak_cell(result, name, "index")
        yield f"{name}: gained there", _peak_cell(result, name, "gain")
        yield f"{name}: lost after", _peak_cell(result, name, "loss")


def _peak_cell(result: SetResult, name: str, what: str) -> FormatCell:
    def cell(arm: Arm) -> str:
        change = result.change_of(arm)
        if change is None:
            return "-"
        peak = change.peaks[name]
        if what == "index":
            return str(result.settled.iterations[peak.index])
        return format_interval(getattr(peak, what), signed=True)

    return cell


def _stop_rows(result: SetResult) -> Iterator[tuple[str, FormatCell]]:
    for name in result.settled.golds if SELECTOR in result.settled.golds else ():
        if name != SELECTOR:
            yield name, _stop_cell(result, name)


def _stop_cell(result: SetResult, name: str) -> FormatCell:
    def cell(arm: Arm) -> str:
        change = result.change_of(arm)
        return format_interval(change.stops[name], signed=True) if change else "-"

    return cell


def _difference_rows(result: SetResult) -> Iterator[tuple[str, FormatCell]]:
    for name in result.settled.golds if result.comparisons else ():
        for where, area in AREAS.items():
            yield f"{name}, {where}", _difference_cell(result, name, area)


def _difference_cell(
    result: SetResult, name: str, area: Callable[[Difference], Interval]
) -> FormatCell:
    def cell(arm: Arm) -> str:
        comparison = result.comparison_of(arm)
        if comparison is None:
            return "-"
        return format_interval(area(comparison.golds[name]), signed=True)

    return cell


def _distance_cell(settled: Settled) -> FormatCell:
    """Return the cell of the mean distance at the last common evaluation, over seeds alone."""

    def cell(arm: Arm) -> str:
        kept = settled.arm_of(arm)
        distances = [distance_at(run) for run in kept.runs] if kept else []
        ends = [d.value[d.iteration == settled.iterations[-1:]] for d in distances]
        known = all(len(end) for end in ends)
        if not (ends and known):
            return "-"
        return format_interval(estimate(np.array(ends), same_prompts=False), signed=False)

    return cell


def _seeds_cell(arm: Arm) -> str:
    """Write how many seeds an arm has, and which."""
    seeds = np.unique(arm.seeds)
    is_row = len(seeds) == seeds[-1] - seeds[0] + 1
    which = format_range(seeds) if is_row else ", ".join(map(str, seeds))
    return f"{len(seeds)} ({which})"


def _iterations_cell(arm: Arm) -> str:
    done = np.array([run.iterations for run in arm.runs])
    planned = arm.runs[0].setting("iterations")
    text = format_range(done)
    return text if done.min() >= planned else f"{text} of {planned}"


def _mean_over_runs(value: Callable[[Run], float]) -> Callable[[Arm], float]:
    return lambda arm: float(np.mean([value(run) for run in arm.runs]))


_images = _mean_over_runs(lambda run: float(run.series("images")[1].max(initial=0)))
_seconds = _mean_over_runs(lambda run: sum(run.seconds().values(), 0.0))


def _speed_cell(arm: Arm) -> str:
    speeds = [v for run in arm.runs for v in run.series("throughput/images_per_s")[1]]
    return format_number(float(np.mean(speeds))) if speeds else "-"


def _mean_cell(kind: RatioKind, at: int) -> FormatCell:
    def cell(arm: Arm) -> str:
        ratio = per_step.ratio_statistics(arm.pooled, kind)
        return format_with_error(ratio.mean[at], ratio.error[at]) if ratio else "-"

    return cell


def _spread_cell(kind: RatioKind) -> FormatCell:
    return lambda arm: format_factor(per_step.ratio_spread(arm.pooled, kind))


def _clipped_cell(side: str) -> FormatCell:
    def cell(arm: Arm) -> str:
        shares = per_step.clipped_shares(arm.pooled)
        return format_percent(float(getattr(shares, side).mean())) if shares else "-"

    return cell


RUNS: Mapping[str, FormatCell] = {
    "objective": lambda arm: arm.variant,
    "seeds (which)": _seeds_cell,
    "iterations": _iterations_cell,
    "images": lambda arm: f"{_images(arm):,.0f}",
    "time of a run": lambda arm: format_duration(_seconds(arm)),
    "images per second": _speed_cell,
}

RATIOS: Mapping[str, FormatCell] = {
    "raw mean - 1, first trained step": _mean_cell("raw", 0),
    "raw mean - 1, last trained step": _mean_cell("raw", -1),
    "normalised mean - 1, last trained step": _mean_cell("norm", -1),
    "largest / smallest spread, optimised ratio": _spread_cell("own"),
    "largest / smallest spread, raw ratio": _spread_cell("raw"),
    "largest / smallest spread, normalised ratio": _spread_cell("norm"),
}

CLIP_AND_GRADIENT: Mapping[str, FormatCell] = {
    "clipped above, of A > 0": _clipped_cell("high"),
    "clipped below, of A < 0": _clipped_cell("low"),
    "largest / smallest share of the gradient": lambda arm: format_factor(
        per_step.gradient_spread(arm.pooled)
    ),
}
