"""Panels, axes and legends that the figures share; steps run from noise, on the left."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps

import numpy as np
from jaxtyping import Float, Int
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy import ndarray

from grpo_guard.report import per_step
from grpo_guard.report.per_step import RatioKind
from grpo_guard.report.runs import Run
from grpo_guard.report.theme import MATPLOTLIB, run_style

WIDTH_INCHES = 10.5  # the page's width at 100 dots per inch
STEP_LABEL = "denoising step (0 is noise)"
RATIO_TITLES: dict[RatioKind, str] = {"raw": "Raw ratio", "norm": "Normalised ratio"}
DASHED = (0, (3, 2))

DrawFigure = Callable[[Sequence[Run]], Figure]


def styled(draw: DrawFigure) -> DrawFigure:
    """Draw with the report's matplotlib settings."""

    @wraps(draw)
    def draw_styled(runs: Sequence[Run]) -> Figure:
        with rc_context(MATPLOTLIB):
            return draw(runs)

    return draw_styled


def make_panels(
    count: int, columns: int, height: float, *, shared: bool = False
) -> tuple[Figure, list[Axes]]:
    """Make a figure of the page's width with `count` panels, row by row.

    Each panel is `height` inches high; with `shared`, all have the same axes.
    """
    columns = min(columns, max(count, 1))
    rows = math.ceil(count / columns) or 1
    figure = Figure(figsize=(WIDTH_INCHES, height * rows + 0.3), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=shared, sharey=shared).flat)
    for spare in panels[count:]:
        spare.remove()
    return figure, panels[:count]


def add_legend(figure: Figure, runs: Sequence[Run], labels: Sequence[str] = ()) -> None:
    """Name the runs above the figure, by their own labels or by others."""
    handles = [Line2D([], [], **run_style(i)) for i in range(len(runs))]
    labels = labels or [run.label for run in runs]
    # a line of the legend holds about 130 characters, and a handle takes the room of 8
    columns = min(len(runs), max(1, 130 // (max(map(len, labels)) + 8)))
    figure.legend(handles, labels, loc="outside upper left", ncols=columns)


def set_step_ticks(panels: Sequence[Axes], runs: Sequence[Run]) -> None:
    """Put the same ticks on all panels: every step that any run trained, and those between.

    If there are more than 15, some are left out at equal distances.
    """
    trained = [per_step.trained_steps(run)[0] for run in runs]
    steps = _fill_gaps(np.unique(np.concatenate(trained)))
    every = max(1, math.ceil(len(steps) / 15))
    for axes in panels:
        axes.set_xticks(steps[::every])


def break_lines(steps: Int[ndarray, " S"], *values: Float[ndarray, " S"]) -> tuple[ndarray, ...]:
    """Return every step from the first to the last, and the values with NaN at missing steps.

    A line then breaks at a step that was never trained.
    """
    all_steps = _fill_gaps(steps)
    broken = np.full((len(values), len(all_steps)), np.nan)
    broken[:, np.isin(all_steps, steps)] = values
    return all_steps, *broken


def _fill_gaps(steps: Int[ndarray, " S"]) -> Int[ndarray, " W"]:
    """Return every step from the first to the last of sorted steps."""
    return np.arange(steps[0], steps[-1] + 1) if len(steps) else steps
