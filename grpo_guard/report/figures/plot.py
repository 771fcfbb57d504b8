"""Figures of curves as matplotlib figures, for PNG and SVG files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogFormatter, MaxNLocator, PercentFormatter

from grpo_guard.report.figures.panels import STEP, CurveFigure, Line, Panel, axis_title
from grpo_guard.report.notation import shorten_exponent, typeset
from grpo_guard.report.theme import MATPLOTLIB, MUTED_COLORS, line_color, line_marker

WIDTH_INCHES = 10.5
PANEL_INCHES = 2.5
LEGEND_INCHES = 0.2  # height of a line of the legend
COLUMNS = 3
PNG_DPI = 130
TINY = 1e-3  # below this, matplotlib writes a power of ten for a whole axis
MARKED = 8  # points of a long curve that have a marker


def draw_curves(data: CurveFigure) -> Figure:
    """Draw the panels over their first axis, with the arms named above them and the signs below."""
    columns = choose_columns(len(data.panels))
    rows = math.ceil(len(data.panels) / columns) or 1
    arms = {line.arm: line.color for panel in data.panels for line in panel.lines}
    # a line of the legend holds about 130 characters, and a handle takes the room of 8
    names = max(1, min(len(arms), 130 // (max(map(len, arms), default=1) + 8)))
    head = 0.45 + LEGEND_INCHES * math.ceil(len(arms) / names)
    height = PANEL_INCHES * rows + head + 0.1
    with rc_context(MATPLOTLIB):
        figure = Figure(figsize=(WIDTH_INCHES, height))
        # placed by hand, because matplotlib's layout engines take most of the time
        figure.subplots_adjust(
            left=0.07,
            right=0.985,
            bottom=0.75 / height,
            top=1 - head / height,
            hspace=0.52,
            wspace=0.26,
        )
        for place, panel in enumerate(data.panels, 1):
            axes = figure.add_subplot(rows, columns, place)
            _draw_panel(axes, panel, data)
        _name_arms(figure, arms, names)
        figure.text(0.012, 0.1 / height, explain_signs(data), fontsize=9, color=MUTED_COLORS[0])
    return figure


def choose_columns(panels: int) -> int:
    """Return how many panels stand beside each other; four make a square."""
    return 2 if panels == 4 else min(COLUMNS, max(1, panels))


def explain_signs(data: CurveFigure) -> str:
    """Return what points, bars, bands and faint lines of a figure mean."""
    lines = [line for panel in data.panels for line in panel.lines]
    sentences = ["Hollow points: before training."] * data.is_path
    if any(np.isfinite(line.low).any() for line in lines):
        sentences.append(f"{'Bars' if data.is_path else 'Bands'}: 95 % intervals.")
    if not all(line.is_mean for line in lines):
        sentences.append("Faint lines: single seeds.")
    if any(line.is_behind for line in lines):
        sentences.append("Dashed lines: the study behind.")
    return " ".join(sentences)


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """Write a figure as PNG and as SVG."""
    with rc_context(MATPLOTLIB):
        figure.savefig(folder / f"{name}.png", dpi=PNG_DPI)
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


def _draw_panel(axes: Axes, panel: Panel, data: CurveFigure) -> None:
    axis = data.axes[0]
    _draw_seeds(axes, panel, axis)
    for line in panel.lines:
        if line.is_mean:
            _draw_mean(axes, line, axis, is_path=data.is_path)
    if panel.baseline is not None:
        axes.axhline(panel.baseline, color=MUTED_COLORS[0], linewidth=0.7, zorder=1)
    if panel.is_logarithmic:
        axes.set_yscale("log")
        # the scale's own formatter writes mathematics, which MATPLOTLIB does not parse
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter())
    elif max(map(abs, axes.get_ylim())) < TINY:
        # matplotlib would write the power of ten over the title
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: write_tiny(value)))
    if panel.unit == "%":
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    if axis == STEP:
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_title(panel.title)
    axes.set_xlabel(axis_title(axis))


def write_tiny(value: float) -> str:
    """Write a number of an axis whose numbers are all tiny."""
    return typeset(shorten_exponent(f"{value:.3g}"))


def _draw_mean(axes: Axes, line: Line, axis: str, *, is_path: bool) -> None:
    if line.is_behind:
        _draw_behind(axes, line, axis)
    elif is_path:
        _draw_path(axes, line, axis)
    else:
        _draw_band(axes, line, axis)


def _draw_behind(axes: Axes, line: Line, axis: str) -> None:
    color = line_color(line.color)
    x = line.x[axis]
    axes.plot(x, line.y, color=color, alpha=0.45, linewidth=1, linestyle="--", zorder=1)
    # a path may turn back, which fill_between does not draw
    axes.fill(
        np.append(x, x[::-1]),
        np.append(line.high, line.low[::-1]),
        color=color,
        alpha=0.13,
        linewidth=0,
    )


def _draw_seeds(axes: Axes, panel: Panel, axis: str) -> None:
    seeds = [line for line in panel.lines if not line.is_mean]
    # one artist for all seeds, because an artist each takes as long as the rest of the panel
    axes.add_collection(
        LineCollection(
            [np.column_stack([line.x[axis], line.y]) for line in seeds],
            colors=[line_color(line.color) for line in seeds],
            alpha=panel.seed_opacity,
            linewidths=0.7,
        )
    )


def _draw_band(axes: Axes, line: Line, axis: str) -> None:
    color = line_color(line.color)
    x = line.x[axis]
    every = max(1, len(x) // MARKED)
    axes.plot(x, line.y, color=color, marker=line_marker(line.color), markevery=every)
    if np.isfinite(line.low).any():
        axes.fill_between(x, line.low, line.high, color=color, alpha=0.15, linewidth=0)


def _draw_path(axes: Axes, line: Line, axis: str) -> None:
    color, marker = line_color(line.color), line_marker(line.color)
    x = line.x[axis]
    every = max(1, len(x) // MARKED)
    axes.plot(x, line.y, color=color, marker=marker, markevery=every)
    axes.vlines(x, line.low, line.high, color=color, alpha=0.4, linewidth=1)
    axes.plot(x[:1], line.y[:1], color=color, marker=marker, markerfacecolor="#ffffff")


def _name_arms(figure: Figure, arms: Mapping[str, int], columns: int) -> None:
    handles = [
        Line2D([], [], color=line_color(color), marker=line_marker(color))
        for color in arms.values()
    ]
    figure.legend(handles, list(arms), loc="upper left", ncols=columns)
