"""Each step's share of the gradient."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from grpo_guard.report import per_step
from grpo_guard.report.figures.panels import (
    DASHED,
    STEP_LABEL,
    add_legend,
    break_lines,
    make_panels,
    set_step_ticks,
    styled,
)
from grpo_guard.report.runs import Run
from grpo_guard.report.theme import MUTED_COLORS, run_style


@styled
def draw_gradient_shares(runs: Sequence[Run]) -> Figure:
    """Draw each step's share of the gradient with respect to the velocity."""
    figure, panels = make_panels(1, 1, 3.1)
    axes = panels[0]
    labels = []
    for i, run in enumerate(runs):
        axes.plot(*break_lines(*per_step.step_means(run, "grad_share")), **run_style(i))
        spread = per_step.gradient_spread(run)
        labels.append(f"{run.label}: largest / smallest {spread:.3g}" if spread > 0 else run.label)
    _draw_even_shares(axes, sorted({per_step.steps_per_iteration(run) for run in runs} - {0}))
    axes.set_title("Share of the gradient: dashed is the same for every step")
    axes.set(xlabel=STEP_LABEL, ylabel="share of the gradient")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylim(bottom=0)
    set_step_ticks(panels, runs)
    add_legend(figure, runs, labels)
    return figure


def _draw_even_shares(axes: Axes, counts: Sequence[int]) -> None:
    """Draw a dashed line at 1/n for each count n of trained steps, named if there are several."""
    for steps in counts:
        axes.axhline(1 / steps, color=MUTED_COLORS[0], linewidth=1, linestyle=DASHED)
        if len(counts) > 1:
            axes.annotate(
                f"of {steps} steps", (1, 1 / steps), (-4, 2), xycoords=axes.get_yaxis_transform(),
                textcoords="offset points", ha="right", va="bottom", fontsize=8,
                color=MUTED_COLORS[0],
            )  # fmt: skip
