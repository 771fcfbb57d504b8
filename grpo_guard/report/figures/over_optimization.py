"""Golds against the proxy along each run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grpo_guard.report import curves
from grpo_guard.report.curves import Curve
from grpo_guard.report.figures.panels import add_legend, make_panels, styled
from grpo_guard.report.runs import Run
from grpo_guard.report.theme import run_style


@styled
def draw_over_optimization(runs: Sequence[Run]) -> Figure:
    """Draw every gold against the proxy; the start is hollow, and numbers are iterations."""
    golds = curves.gold_names(runs)
    figure, panels = make_panels(len(golds), 2, 2.9)
    labels = 5 if len(runs) < 3 else 1
    for name, axes in zip(golds, panels, strict=True):
        axes.set(title=f"{name} against proxy", xlabel="proxy", ylabel=f"gold: {name}")
        for i, run in enumerate(runs):
            _draw_path(axes, curves.proxy_curve(run), curves.gold_curve(run, name), i, labels)
    add_legend(figure, runs)
    return figure


def _draw_path(axes: Axes, proxy: Curve, gold: Curve, index: int, labels: int) -> None:
    """Draw one run, with the iteration written at `labels` of its points."""
    iteration, in_proxy, in_gold = np.intersect1d(
        proxy.iteration, gold.iteration, return_indices=True
    )
    if not len(iteration):
        return
    style = run_style(index)
    x = proxy.value[in_proxy]
    y = gold.value[in_gold]
    error = np.nan_to_num(gold.error[in_gold])
    axes.errorbar(x, y, yerr=error, elinewidth=1, linestyle="none", alpha=0.3, **style)
    axes.plot(x, y, linewidth=1.2, alpha=0.75, **style)
    axes.plot(x[:1], y[:1], **style | {"markerfacecolor": "#ffffff"}, markersize=7, zorder=3)
    axes.plot(x[-1:], y[-1:], **style, markersize=7, zorder=3)
    # numbers of every second run lie below its points, so that they meet less often
    side, anchor = (1, "bottom") if index % 2 == 0 else (-1, "top")
    for k in sorted({round(k) for k in np.linspace(len(iteration) - 1, 0, labels)}):
        axes.annotate(
            f"{iteration[k]}", (x[k], y[k]), (4, 5 * side), textcoords="offset points",
            fontsize=7.5, color=style["color"], va=anchor,
        )  # fmt: skip
