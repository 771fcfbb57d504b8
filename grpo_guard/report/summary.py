"""The summary table: one row per quantity, one column per arm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

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
from grpo_guard.report.statistics import HALF_WIDTH, Interval, estimate
from grpo_guard.schema import record

NOT_KNOWN = Interval(value=np.nan, low=np.nan, high=np.nan)


@record
class Cell:
    """The value of a quantity in an arm."""

    text: str
    """The value as people read it; "-" if the runs did not measure it."""
    number: Interval = NOT_KNOWN
    """The value as a number, with the ends of its 95 % interval; NaN for those that there are not.
    Durations are in seconds, and percentages are shares."""


NOTHING = Cell(text="-")
MakeCell = Callable[[Arm], Cell]
"""Makes the cell of one quantity in an arm, or `NOTHING` if its runs did not measure it."""

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
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    """Name of each quantity, and its value in every arm."""

    @property
    def texts(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Name of each quantity, and its text in every arm."""
        return tuple((name, tuple(cell.text for cell in cells)) for name, cells in self.rows)


def summarise(result: SetResult) -> tuple[TableSection, ...]:
    """Return every quantity that is a single number per arm, with its 95 % interval."""
    settled = result.settled
    last = settled.iterations[-1] if len(settled.iterations) else 0
    sections: dict[str, Mapping[str, MakeCell]] = {
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


def _from_interval(interval: Interval, *, signed: bool) -> Cell:
    return Cell(text=format_interval(interval, signed=signed), number=interval)


def _from_number(value: float, write: Callable[[float], str]) -> Cell:
    return Cell(text=write(value), number=_plain(value))


def _plain(value: float) -> Interval:
    """Return a number without an interval."""
    return replace(NOT_KNOWN, value=value)


def _of_kept_runs(
    settled: Settled, cells: Mapping[str, MakeCell], *, or_all: bool = False
) -> dict[str, MakeCell]:
    """Return cells that show those runs of an arm that means are taken over.

    Of an arm without any they show "-", or all its runs with `or_all`.
    """

    def choose(cell: MakeCell) -> MakeCell:
        def on_kept(arm: Arm) -> Cell:
            kept = settled.arm_of(arm) or (arm if or_all else None)
            return cell(kept) if kept else NOTHING

        return on_kept

    return {name: choose(cell) for name, cell in cells.items()}


def _change_rows(result: SetResult) -> Iterator[tuple[str, MakeCell]]:
    """Yield rows for the proxy, for every gold and for the distance from the base model."""

    def proxy(arm: Arm) -> Cell:
        change = result.change_of(arm)
        return _from_interval(change.proxy, signed=True) if change else NOTHING

    yield f"proxy: {' or '.join(proxy_names(result.arm_set.arms)) or PROXY}", proxy
    for name in result.settled.golds:
        yield f"gold: {name}", _gold_cell(result, name)
    yield "distance from the base, sqrt(KL)", _distance_cell(result.settled)


def _gold_cell(result: SetResult, name: str) -> MakeCell:
    def cell(arm: Arm) -> Cell:
        change = result.change_of(arm)
        return _from_interval(change.golds[name], signed=True) if change else NOTHING

    return cell


def _peak_rows(result: SetResult) -> Iterator[tuple[str, MakeCell]]:
    for name in result.settled.golds:
        yield f"{name}: peak at iteration", _peak_cell(result, name, "index")
        yield f"{name}: gained there", _peak_cell(result, name, "gain")
        yield f"{name}: lost after", _peak_cell(result, name, "loss")


def _peak_cell(result: SetResult, name: str, what: str) -> MakeCell:
    def cell(arm: Arm) -> Cell:
        change = result.change_of(arm)
        if change is None:
            return NOTHING
        peak = change.peaks[name]
        if what == "index":
            return _from_number(int(result.settled.iterations[peak.index]), str)
        return _from_interval(getattr(peak, what), signed=True)

    return cell


def _stop_rows(result: SetResult) -> Iterator[tuple[str, MakeCell]]:
    for name in result.settled.golds if SELECTOR in result.settled.golds else ():
        if name != SELECTOR:
            yield name, _stop_cell(result, name)


def _stop_cell(result: SetResult, name: str) -> MakeCell:
    def cell(arm: Arm) -> Cell:
        change = result.change_of(arm)
        return _from_interval(change.stops[name], signed=True) if change else NOTHING

    return cell


def _difference_rows(result: SetResult) -> Iterator[tuple[str, MakeCell]]:
    for name in result.settled.golds if result.comparisons else ():
        for where, area in AREAS.items():
            yield f"{name}, {where}", _difference_cell(result, name, area)


def _difference_cell(
    result: SetResult, name: str, area: Callable[[Difference], Interval]
) -> MakeCell:
    def cell(arm: Arm) -> Cell:
        comparison = result.comparison_of(arm)
        if comparison is None:
            return NOTHING
        return _from_interval(area(comparison.golds[name]), signed=True)

    return cell


def _distance_cell(settled: Settled) -> MakeCell:
    """Return the cell of the mean distance at the last common evaluation, over seeds alone."""

    def cell(arm: Arm) -> Cell:
        kept = settled.arm_of(arm)
        distances = [distance_at(run) for run in kept.runs] if kept else []
        ends = [d.value[d.iteration == settled.iterations[-1:]] for d in distances]
        known = all(len(end) for end in ends)
        if not (ends and known):
            return NOTHING
        return _from_interval(estimate(np.array(ends), same_prompts=False), signed=False)

    return cell


def _seeds_cell(arm: Arm) -> Cell:
    """Write how many seeds an arm has, and which."""
    seeds = np.unique(arm.seeds)
    is_row = len(seeds) == seeds[-1] - seeds[0] + 1
    which = format_range(seeds) if is_row else ", ".join(map(str, seeds))
    return Cell(text=f"{len(seeds)} ({which})", number=_plain(len(seeds)))


def _iterations_cell(arm: Arm) -> Cell:
    done = np.array([run.iterations for run in arm.runs])
    planned = arm.runs[0].setting("iterations")
    text = format_range(done) + (f" of {planned}" if done.min() < planned else "")
    return Cell(text=text, number=NOT_KNOWN if np.ptp(done) else _plain(int(done[0])))


def _mean_over_runs(value: Callable[[Run], float]) -> Callable[[Arm], float]:
    return lambda arm: float(np.mean([value(run) for run in arm.runs]))


_images = _mean_over_runs(lambda run: float(run.series("images")[1].max(initial=0)))
_seconds = _mean_over_runs(lambda run: sum(run.seconds().values(), 0.0))


def _speed_cell(arm: Arm) -> Cell:
    speeds = [v for run in arm.runs for v in run.series("throughput/images_per_s")[1]]
    return _from_number(float(np.mean(speeds)), format_number) if speeds else NOTHING


def _mean_cell(kind: RatioKind, at: int) -> MakeCell:
    def cell(arm: Arm) -> Cell:
        ratio = per_step.ratio_statistics(arm.pooled, kind)
        if ratio is None:
            return NOTHING
        mean, error = float(ratio.mean[at]), float(ratio.error[at])
        half = HALF_WIDTH * error
        number = Interval(value=mean, low=mean - half, high=mean + half)
        return Cell(text=format_with_error(mean, error), number=number)

    return cell


def _spread_cell(kind: RatioKind) -> MakeCell:
    return lambda arm: _from_number(per_step.ratio_spread(arm.pooled, kind), format_factor)


def _clipped_cell(side: str) -> MakeCell:
    def cell(arm: Arm) -> Cell:
        shares = per_step.clipped_shares(arm.pooled)
        if shares is None:
            return NOTHING
        return _from_number(float(getattr(shares, side).mean()), format_percent)

    return cell


RUNS: Mapping[str, MakeCell] = {
    "objective": lambda arm: Cell(text=arm.variant),
    "seeds (which)": _seeds_cell,
    "iterations": _iterations_cell,
    "images": lambda arm: _from_number(_images(arm), "{:,.0f}".format),
    "time of a run": lambda arm: _from_number(_seconds(arm), format_duration),
    "images per second": _speed_cell,
}

RATIOS: Mapping[str, MakeCell] = {
    "raw mean - 1, first trained step": _mean_cell("raw", 0),
    "raw mean - 1, last trained step": _mean_cell("raw", -1),
    "normalised mean - 1, last trained step": _mean_cell("norm", -1),
    "largest / smallest spread, optimised ratio": _spread_cell("own"),
    "largest / smallest spread, raw ratio": _spread_cell("raw"),
    "largest / smallest spread, normalised ratio": _spread_cell("norm"),
}

CLIP_AND_GRADIENT: Mapping[str, MakeCell] = {
    "clipped above, of A > 0": _clipped_cell("high"),
    "clipped below, of A < 0": _clipped_cell("low"),
    "largest / smallest share of the gradient": lambda arm: _from_number(
        per_step.gradient_spread(arm.pooled), format_factor
    ),
}
