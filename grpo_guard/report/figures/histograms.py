"""Histograms of log-ratios, a ridge per step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy import ndarray

from grpo_guard.report.figures.panels import RATIO_TITLES, STEP_LABEL, make_panels, styled
from grpo_guard.report.per_step import RatioKind
from grpo_guard.report.runs import Histograms, Run
from grpo_guard.report.theme import BAND_COLORS, INK_COLORS, run_style

MAX_REACH = 4.0  # clip ranges shown on either side of a ratio that is clipped
RIDGE_HEIGHT = 1.2  # in distances between ridges: neighbours may overlap a little
HALO = [withStroke(linewidth=2.5, foreground="#ffffff")]


@styled
def draw_histograms(runs: Sequence[Run]) -> Figure:
    """Draw log-ratios in clip ranges; the clip range is shaded for the ratio that it clips."""
    columns = [
        (i, run, kind)
        for i, run in enumerate(runs)
        for kind in RATIO_TITLES
        if run.histograms and _sum_counts(run.histograms, kind)
    ]
    steps = sorted(
        {
            step
            for _, run, kind in columns
            if run.histograms
            for step in _sum_counts(run.histograms, kind)
        }
    )
    figure, panels = make_panels(len(columns), min(4, len(columns)), 0.42 * len(steps) + 1.1)
    for axes, (i, run, kind) in zip(panels, columns, strict=True):
        _draw_ridges(axes, run, kind, i, steps)
    return figure


def _sum_counts(histograms: Histograms, kind: RatioKind) -> dict[int, Int[ndarray, " K"]]:
    """Return the counts of all iterations together, by step; steps without any are left out."""
    counts = {
        int(key[-2:]): value.sum(0)
        for key, value in histograms.counts.items()
        if key.startswith(f"ratio_{kind}/hist/")
    }
    return {step: counts[step] for step in sorted(counts) if counts[step].sum()}


def _draw_ridges(axes: Axes, run: Run, kind: RatioKind, index: int, steps: Sequence[int]) -> None:
    """Draw one ratio of one run; `steps` are those of all panels, so that ridges line up."""
    assert run.histograms is not None
    ridges = _sum_counts(run.histograms, kind)
    edges = run.histograms.edges
    color = run_style(index)["color"]
    is_clipped = run.ratio == kind
    reach = max(quantile(np.abs(edges), counts, 0.985) for counts in ridges.values())
    reach = float(np.clip(reach, 1.6, MAX_REACH if is_clipped else np.inf))
    for step, counts in ridges.items():
        place = steps.index(step)
        x, height = density(counts, edges)
        top = RIDGE_HEIGHT * height - place
        axes.fill_between(
            x, -place, top, facecolor=color, alpha=0.28, linewidth=0, zorder=2 + place
        )
        axes.plot(x, top, color=color, linewidth=1.1, zorder=2 + place)
        if is_clipped:
            _write_shares_outside(axes, counts, edges, -float(place), reach)
    axes.set(
        title=f"{run.label}\n{RATIO_TITLES[kind].lower()}{', optimised' if is_clipped else ''}",
        xlim=(-reach, reach),
        xlabel="log-ratio in clip ranges",
        ylabel=STEP_LABEL,
        ylim=(0.25 - len(steps), 1.4),
    )
    axes.set_yticks(-np.arange(len(steps)), [f"{step}" for step in steps])
    axes.grid(axis="y", visible=False)
    if is_clipped:
        axes.axvspan(-1, 1, color=BAND_COLORS[0], zorder=0)


def _write_shares_outside(
    axes: Axes, counts: Int[ndarray, " K"], edges: Float[ndarray, " K1"], base: float, reach: float
) -> None:
    """Write the shares of rows below and above the clip range at the ends of a ridge's base."""
    before = np.append(0, counts.cumsum()) / counts.sum()
    low, high = np.interp(-1, edges, before), 1 - np.interp(1, edges, before)
    for share, x, side in ((low, -reach, "left"), (high, reach, "right")):
        axes.text(
            x, base + 0.06, f" {100 * share:.0f} % " if share >= 0.005 else "",
            ha=side, va="bottom", fontsize=7.5, color=INK_COLORS[0], zorder=60, path_effects=HALO,
        )  # fmt: skip


def density(
    counts: Int[ndarray, " K"], edges: Float[ndarray, " K1"]
) -> tuple[Float[ndarray, " P"], Float[ndarray, " P"]]:
    """Return points and the density of rows at each, scaled to 1 at its highest.

    The outer bins are left out because they are open. Neighbouring bins are joined into 6 to 24
    bins of about equal counts, because narrow bins would show their noise.
    """
    before = np.append(0, counts[1:-1].cumsum())
    filled = np.nonzero(counts[1:-1])[0]
    inner = edges[1:-1]
    if not len(filled):
        return inner, np.zeros(len(inner))
    groups = int(np.clip(np.sqrt(before[-1]) / 3, 6, 24))
    cuts = np.searchsorted(before, np.linspace(0, before[-1], groups + 1)[1:-1])
    cuts = np.unique([filled[0], *cuts, filled[-1] + 1])
    height = np.diff(before[cuts]) / np.diff(inner[cuts])
    middle = (inner[cuts[1:]] + inner[cuts[:-1]]) / 2
    points = [inner[0], inner[cuts[0]], *middle, inner[cuts[-1]], inner[-1]]
    return np.array(points), np.array([0, 0, *height / height.max(), 0, 0])


def quantile(values: Float[ndarray, " K1"], counts: Int[ndarray, " K"], share: float) -> float:
    """Return the value below which a share of the counts lies; values are at the bins' edges."""
    middle = (values[1:] + values[:-1]) / 2
    order = np.argsort(middle)
    return float(np.interp(share * counts.sum(), counts[order].cumsum(), middle[order]))
