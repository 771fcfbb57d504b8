"""Mean and spread of the importance ratios at each step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from grpo_guard.report import per_step
from grpo_guard.report.figures.panels import (
    DASHED,
    RATIO_TITLES,
    STEP_LABEL,
    add_legend,
    break_lines,
    make_panels,
    set_step_ticks,
    styled,
)
from grpo_guard.report.per_step import RatioKind
from grpo_guard.report.runs import Run
from grpo_guard.report.theme import INK_COLORS, run_style

SUPERSCRIPTS = str.maketrans(
    "-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"
)


@styled
def draw_ratios(runs: Sequence[Run]) -> Figure:
    """Draw mean, spread and mean over spread of the raw and the normalised ratio.

    A line is dashed if its run does not optimise the ratio.
    """
    figure, panels = make_panels(6, 2, 2.35)
    for column, kind in enumerate(RATIO_TITLES):
        _draw_column(panels[column::2], kind, runs)
    _share_limits(panels[4:6])
    set_step_ticks(panels, runs)
    add_legend(figure, runs)
    return figure


def _draw_column(panels: Sequence[Axes], kind: RatioKind, runs: Sequence[Run]) -> None:
    mean, std, shift = panels
    for i, run in enumerate(runs):
        _draw_run(run, kind, i - (len(runs) - 1) / 2, i, panels)
    title = RATIO_TITLES[kind]
    mean.set(
        title=f"{title}, mean \N{MINUS SIGN} 1: below 0 is a left shift",
        ylabel="mean \N{MINUS SIGN} 1",
    )
    std.set(title=f"{title}, spread: flat is alike on all steps", ylabel="standard deviation")
    shift.set(
        title=f"{title}, mean over spread: 0 is centred",
        ylabel="standard deviations",
        xlabel=STEP_LABEL,
    )
    _set_decades(std)
    _set_power_of_ten(mean)
    for axes in (mean, shift):
        axes.axhline(0, color=INK_COLORS[0], linewidth=0.8, zorder=1)


def _draw_run(run: Run, kind: RatioKind, offset: float, index: int, panels: Sequence[Axes]) -> None:
    """Draw one run; `offset` keeps the error bars of several runs beside each other."""
    ratio = per_step.ratio_statistics(run, kind)
    if ratio is None:
        return
    style = run_style(index) | {"linestyle": "-" if run.ratio == kind else DASHED}
    step, mean, error, std, shift = break_lines(
        ratio.step, ratio.mean, ratio.error, ratio.std, ratio.shift
    )
    x = step + 0.06 * offset
    bar = 2 * error
    panels[0].errorbar(x, mean, yerr=bar, elinewidth=1, **style)
    panels[1].plot(x, std, **style)
    panels[2].errorbar(x, shift, yerr=bar / np.maximum(std, 1e-30), elinewidth=1, **style)


def _set_power_of_ten(axes: Axes) -> None:
    """Write the vertical axis in multiples of a power of ten, which its label names."""
    reach = max(map(abs, axes.get_ylim()))
    power = math.floor(math.log10(reach)) if reach > 0 else 0
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda y, _: f"{y / 10**power:.3g}".replace("-", "\N{MINUS SIGN}"))
    )
    axes.set_ylabel(f"{axes.get_ylabel()}, in {_format_power(power)}")


def _set_decades(axes: Axes) -> None:
    """Make the vertical axis logarithmic, from one power of ten to another."""
    low, high = axes.dataLim.intervaly
    axes.set_yscale("log")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _format_power(round(math.log10(y)))))
    if 0 < low <= high < np.inf:
        axes.set_ylim(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)))


def _format_power(power: int) -> str:
    """Write a power of ten in Unicode, because matplotlib typesets mathematics slowly."""
    return "10" + str(power).translate(SUPERSCRIPTS)


def _share_limits(panels: Sequence[Axes]) -> None:
    limits = [axes.get_ylim() for axes in panels]
    for axes in panels:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
