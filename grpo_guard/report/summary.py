"""The summary table: one row per quantity, one column per run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from grpo_guard.report import curves, per_step
from grpo_guard.report.notation import (
    format_duration,
    format_factor,
    format_percent,
    format_with_error,
)
from grpo_guard.report.per_step import RatioKind
from grpo_guard.report.runs import Run
from grpo_guard.schema import record

FormatCell = Callable[[Run], str]
"""Writes the value of one quantity in a run, or "-" if the run did not measure it."""


@record
class TableSection:
    """Rows of the summary under one heading."""

    title: str
    """The heading."""
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    """Name of each quantity, and its value in every run."""


def summarise(runs: Sequence[Run]) -> tuple[TableSection, ...]:
    """Return every quantity that is a single number per run."""
    sections = {
        "Run": RUN,
        "Held-out prompts, first -> last": _evaluation_rows(runs),
        "Ratios, averaged over all iterations": RATIOS,
        "Clip and gradient, averaged over all iterations": CLIP_AND_GRADIENT,
    }
    return tuple(
        TableSection(
            title=title,
            rows=tuple((name, tuple(map(cell, runs))) for name, cell in rows.items()),
        )
        for title, rows in sections.items()
    )


def _evaluation_rows(runs: Sequence[Run]) -> Mapping[str, FormatCell]:
    """Return rows for the proxy, and for every gold of any of the runs."""
    names = sorted({name for run in runs if (name := curves.proxy_name(run))})
    proxy = f"proxy: {' or '.join(names)}" if names else "proxy"
    golds = {f"gold: {name}": _gold_cell(name) for name in curves.gold_names(runs)}
    return {proxy: _proxy_cell} | golds


def _proxy_cell(run: Run) -> str:
    return _format_ends(curves.proxy_curve(run).value)


def _gold_cell(name: str) -> FormatCell:
    return lambda run: _format_ends(curves.gold_curve(run, name).value)


def _format_ends(values: np.ndarray) -> str:
    return f"{values[0]:.3f} -> {values[-1]:.3f}" if len(values) else "-"


def _iterations_cell(run: Run) -> str:
    planned = run.setting("iterations")
    return f"{run.iterations}" if run.iterations >= planned else f"{run.iterations} of {planned}"


def _images_cell(run: Run) -> str:
    values = run.series("images")[1]
    return f"{values[-1] if len(values) else 0:,.0f}"


def _time_cell(run: Run) -> str:
    return format_duration(sum(run.seconds().values(), 0.0))


def _mean_cell(kind: RatioKind, at: int) -> FormatCell:
    def cell(run: Run) -> str:
        ratio = per_step.ratio_statistics(run, kind)
        return format_with_error(ratio.mean[at], ratio.error[at]) if ratio else "-"

    return cell


def _spread_cell(kind: RatioKind) -> FormatCell:
    return lambda run: format_factor(per_step.ratio_spread(run, kind))


def _clipped_above_cell(run: Run) -> str:
    shares = per_step.clipped_shares(run)
    return format_percent(float(shares.high.mean())) if shares else "-"


def _clipped_below_cell(run: Run) -> str:
    shares = per_step.clipped_shares(run)
    return format_percent(float(shares.low.mean())) if shares else "-"


def _gradient_cell(run: Run) -> str:
    return format_factor(per_step.gradient_spread(run))


RUN: Mapping[str, FormatCell] = {
    "objective": lambda run: run.variant,
    "iterations": _iterations_cell,
    "images": _images_cell,
    "time": _time_cell,
}

RATIOS: Mapping[str, FormatCell] = {
    "raw mean - 1, first trained step": _mean_cell("raw", 0),
    "raw mean - 1, last trained step": _mean_cell("raw", -1),
    "normalised mean - 1, last trained step": _mean_cell("norm", -1),
    "spread of the optimised ratio, largest / smallest": _spread_cell("own"),
    "spread of the raw ratio, largest / smallest": _spread_cell("raw"),
    "spread of the normalised ratio, largest / smallest": _spread_cell("norm"),
}

CLIP_AND_GRADIENT: Mapping[str, FormatCell] = {
    "clipped above, of A > 0": _clipped_above_cell,
    "clipped below, of A < 0": _clipped_below_cell,
    "share of the gradient, largest / smallest": _gradient_cell,
}
