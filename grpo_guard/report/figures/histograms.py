"""Histograms of log-ratios, a ridge per step."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy import ndarray

from grpo_guard.report.arms import Arm
from grpo_guard.report.figures.by_step import RATIO_TITLES
from grpo_guard.report.figures.panels import STEP
from grpo_guard.report.per_step import RatioKind
from grpo_guard.report.runs import Histograms, step_of
from grpo_guard.report.theme import BAND_COLORS, INK_COLORS, MATPLOTLIB, line_color
from grpo_guard.schema import record

TITLE = "Ratio histograms"
READING = (
    "A ridge per step holds the log-ratios of all iterations and seeds, each scaled to its own"
    " height; the band is the clip range of the ratio that is optimised, and the numbers are the"
    " shares of rows outside it. The other ratio is in the same unit only to compare steps."
)
MAX_REACH = 4.0  # clip ranges shown on either side of a ratio that is clipped
RIDGE_HEIGHT = 1.2  # in distances between ridges: neighbours may overlap a little
HALO = [withStroke(linewidth=2.5, foreground="#ffffff")]


@record
class Ridges:
    """The histograms of one ratio of one arm."""

    arm: Arm
    """The arm."""
    kind: RatioKind
    """The ratio."""
    steps: tuple[int, ...]
    """The steps of all ridges of the page, so that they line up."""


def list_ridges(arms: Sequence[Arm]) -> tuple[Ridges, ...]:
    """Return the histograms of every arm and ratio that was measured."""
    measured = [
        (arm, kind, tuple(_sum_counts(arm.pooled.histograms, kind)))
        for arm in arms
        for kind in RATIO_TITLES
        if arm.pooled.histograms
    ]
    steps = tuple(sorted({step for _, _, own in measured for step in own}))
    return tuple(Ridges(arm=arm, kind=kind, steps=steps) for arm, kind, own in measured if own)


def draw_ridges(ridges: Sequence[Ridges], width: float = 3.4) -> Figure:
    """Draw ridges beside each other, each `width` inches wide."""
    with rc_context(MATPLOTLIB):
        height = 0.36 * len(ridges[0].steps) + 1.2
        figure = Figure(figsize=(width * len(ridges), height))
        # placed by hand, because matplotlib's layout engines draw everything twice
        figure.subplots_adjust(
            left=0.5 / figure.get_figwidth(),
            right=1 - 0.1 / figure.get_figwidth(),
            bottom=0.5 / height,
            top=1 - 0.5 / height,
            wspace=0.55 / (width - 0.6),
        )
        panels = figure.subplots(1, len(ridges), squeeze=False).flat
        for axes, one in zip(panels, ridges, strict=True):
            _draw_ridges(axes, one)
    return figure


def write_counts(ridges: Sequence[Ridges], path: Path) -> None:
    """Write the counts of all iterations and seeds as CSV, one row per bin."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arm", "ratio", "step", "from", "to", "rows"])
        for one in ridges:
            histograms = one.arm.pooled.histograms
            assert histograms is not None
            edges = histograms.edges.tolist()
            for step, counts in _sum_counts(histograms, one.kind).items():
                bins = zip(edges[:-1], edges[1:], counts.tolist(), strict=True)
                writer.writerows([one.arm.label, one.kind, step, *cells] for cells in bins)


def _sum_counts(histograms: Histograms, kind: RatioKind) -> dict[int, Int[ndarray, " K"]]:
    """Return the counts of all iterations together, by step; steps without any are left out."""
    counts = {
        step_of(key): value.sum(0)
        for key, value in histograms.counts.items()
        if key.startswith(f"ratio_{kind}/hist/")
    }
    return {step: counts[step] for step in sorted(counts) if counts[step].sum()}


def _draw_ridges(axes: Axes, one: Ridges) -> None:
    histograms = one.arm.pooled.histograms
    assert histograms is not None
    ridges = _sum_counts(histograms, one.kind)
    edges = histograms.edges
    color = line_color(one.arm.color)
    is_clipped = one.arm.runs[0].ratio == one.kind
    reach = max(quantile(np.abs(edges), counts, 0.985) for counts in ridges.values())
    reach = float(np.clip(reach, 1.6, MAX_REACH if is_clipped else np.inf))
    for step, counts in ridges.items():
        place = one.steps.index(step)
        x, height = density(counts, edges)
        top = RIDGE_HEIGHT * height - place
        axes.fill_between(
            x, -place, top, facecolor=color, alpha=0.28, linewidth=0, zorder=2 + place
        )
        axes.plot(x, top, color=color, linewidth=1.1, zorder=2 + place)
        if is_clipped:
            _write_shares_outside(axes, counts, edges, -float(place), reach)
    axes.set(
        title=f"{one.arm.label}\n{RATIO_TITLES[one.kind]}{', optimised' if is_clipped else ''}",
        xlim=(-reach, reach),
        xlabel="log-ratio in clip ranges",
        ylabel=STEP,
        ylim=(0.25 - len(one.steps), 1.4),
    )
    axes.set_yticks(-np.arange(len(one.steps)), [f"{step}" for step in one.steps])
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
