"""Plain measures of the pictures along each run."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from grpo_guard.report import curves
from grpo_guard.report.figures.panels import add_legend, make_panels, styled
from grpo_guard.report.runs import Run
from grpo_guard.report.theme import run_style


@styled
def draw_statistics(runs: Sequence[Run]) -> Figure:
    """Draw each statistic: held-out pictures with markers, training samples as thin lines."""
    names = curves.statistic_names(runs)
    figure, panels = make_panels(len(names), 3, 2.1)
    for axes, name in zip(panels, names, strict=True):
        axes.set(title=name.rpartition("/")[2].replace("_", " "), xlabel="iteration")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for i, run in enumerate(runs):
            style = run_style(i)
            samples = curves.smooth(*run.series(f"watch/{name}"))
            axes.plot(*samples, linewidth=1, color=style["color"], alpha=0.6)
            axes.plot(*run.series(f"eval/gold/{name}"), **style)
    add_legend(figure, runs)
    return figure
