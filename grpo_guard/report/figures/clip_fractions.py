"""How often the clip acts at each step."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from grpo_guard.report import per_step
from grpo_guard.report.figures.panels import STEP_LABEL, make_panels, set_step_ticks, styled
from grpo_guard.report.per_step import ClippedShares
from grpo_guard.report.runs import Run
from grpo_guard.report.theme import INK_COLORS, MUTED_COLORS, run_style


@styled
def draw_clip_fractions(runs: Sequence[Run]) -> Figure:
    """Draw a panel per run: rows with A > 0 above the range upwards, A < 0 below it downwards."""
    columns = [
        (i, run, shares)
        for i, run in enumerate(runs)
        if (shares := per_step.clipped_shares(run)) is not None
    ]
    figure, panels = make_panels(len(columns), min(4, max(2, len(columns))), 2.7, shared=True)
    highest = max(float(max(shares.high.max(), shares.low.max())) for _, _, shares in columns)
    limit = 1.25 * highest + 1e-6
    for axes, (i, run, shares) in zip(panels, columns, strict=True):
        axes.set(
            title=run.label,
            xlabel=STEP_LABEL,
            ylabel="share of such rows clipped",
            ylim=(-limit, limit),
        )
        _draw_bars(axes, shares, run_style(i)["color"])
    set_step_ticks(panels, runs)
    return figure


def _draw_bars(axes: Axes, shares: ClippedShares, color: str) -> None:
    axes.bar(shares.step, shares.high, width=0.72, color=color)
    axes.bar(shares.step, -shares.low, width=0.72, color=color, alpha=0.55)
    axes.axhline(0, color=INK_COLORS[0], linewidth=0.8)
    axes.label_outer(remove_inner_ticks=False)
    axes.grid(axis="x", visible=False)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{abs(100 * y):.3g} %"))
    for text, height, side in (("above, A > 0", 0.97, "top"), ("below, A < 0", 0.03, "bottom")):
        axes.text(
            0.02, height, text, transform=axes.transAxes, va=side, fontsize=8, color=MUTED_COLORS[0]
        )  # fmt: skip
