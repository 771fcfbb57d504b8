"""Training reward, proxy and golds along each run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from grpo_guard.report import curves
from grpo_guard.report.curves import Curve
from grpo_guard.report.figures.panels import add_legend, make_panels, styled
from grpo_guard.report.runs import Run
from grpo_guard.report.theme import run_style


@styled
def draw_evaluations(runs: Sequence[Run]) -> Figure:
    """Draw reward, proxy and golds against iteration, with bands of one standard error."""
    golds = curves.gold_names(runs)
    titles = ["training reward (on samples)", "proxy (held-out prompts)"]
    titles += [f"gold: {name}" for name in golds]
    figure, panels = make_panels(len(titles), 3, 2.4)
    for axes, title in zip(panels, titles, strict=True):
        axes.set(title=title, xlabel="iteration")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for i, run in enumerate(runs):
        iteration, reward = run.series("reward/total")
        every = max(1, len(reward) // 8)
        panels[0].plot(iteration, reward, linewidth=1, markevery=every, **run_style(i))
        scores = [curves.proxy_curve(run), *(curves.gold_curve(run, name) for name in golds)]
        for axes, curve in zip(panels[1:], scores, strict=True):
            _draw_curve(axes, curve, i)
    add_legend(figure, runs)
    return figure


def _draw_curve(axes: Axes, curve: Curve, index: int) -> None:
    style = run_style(index)
    error = np.nan_to_num(curve.error)
    low, high = curve.value - error, curve.value + error
    axes.plot(curve.iteration, curve.value, **style)
    axes.fill_between(curve.iteration, low, high, color=style["color"], alpha=0.15, linewidth=0)
