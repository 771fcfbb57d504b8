"""What dashboards show of the numbers: their order, histograms on a common axis, pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from grpo_guard.metrics import Histogram, Metrics

REACH = 3.0
"""Clip ranges on either side of 0 that histograms show."""
AXIS: Float[ndarray, " K1"] = np.linspace(-REACH - 0.05, REACH + 0.05, 123)
"""Edges of uniform bins, 20 to a clip range; the two outer bins hold everything outside."""
ORDER = (
    "eval/proxy/", "eval/gold/", "eval/over_optimising", "reward/total", "eval/", "reward/",
    "ratio_own/", "ratio_norm/", "ratio_raw/", "clip/", "grad_share/", "advantage/", "watch/",
    "loss/",
)  # fmt: skip
"""Beginnings of keys in the order of their importance."""
RATIOS = {"own": "optimised ratio", "norm": "RatioNorm", "raw": "raw ratio"}
"""Kinds of ratios in the order of a picture, with their titles."""


def most_important_first(metrics: Metrics) -> Metrics:
    """Order metrics: the proxy, the golds, then the other sections."""

    def place(key: str) -> tuple[int, str]:
        matches = (i for i, beginning in enumerate(ORDER) if key.startswith(beginning))
        return next(matches, len(ORDER)), key

    return {key: metrics[key] for key in sorted(metrics, key=place)}


def spread_uniformly(histogram: Histogram) -> Float[ndarray, " K"]:
    """Return the counts between the edges of `AXIS`; bins that overlap several are divided.

    Stored bins are narrow at 0 and wide far outside, which no dashboard can draw.
    """
    edges = histogram.edges.numpy()
    before = np.append(0, histogram.counts.numpy().cumsum())
    at = np.interp(AXIS, edges, before)
    at[0], at[-1] = 0, before[-1]
    return np.diff(at)


def draw_ridgelines(histograms: dict[str, Histogram]) -> UInt8[ndarray, "H W 3"]:
    """Draw the histograms `ratio_<kind>/hist/tt` of all steps in one picture.

    There is a column for each kind and a line for each step, scaled to its own height, with the
    shares beyond the axis at its ends. The band is the clip range of the optimised ratio.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = sorted({key.rpartition("/")[2] for key in histograms}, key=int)
    figure = Figure(figsize=(3.4 * len(RATIOS), 0.36 * len(steps) + 1.2), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(RATIOS), sharey=True)
    for axes, (kind, title) in zip(panels, RATIOS.items(), strict=True):
        axes.axvspan(-1, 1, color="#dfe7f2")
        axes.set(title=title, xlim=(-REACH, REACH), xlabel="log-ratio in clip ranges")
        axes.set_yticks([-place for place in range(len(steps))], [str(int(tt)) for tt in steps])
        for place, tt in enumerate(steps):
            _draw_ridge(axes, histograms.get(f"ratio_{kind}/hist/{tt}"), -place)
    panels[0].set_ylabel("denoising step")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw_ridge(axes: Any, histogram: Histogram | None, base: float) -> None:
    if histogram is None or not histogram.counts.sum():
        return
    counts = spread_uniformly(histogram)
    inner = counts[1:-1]
    middle = (AXIS[1:-2] + AXIS[2:-1]) / 2
    height = inner / max(inner.max(), 1e-9)
    axes.fill_between(middle, base, base + height, color="#2f6db5", alpha=0.5, linewidth=0)
    shares = counts[[0, -1]] / counts.sum()
    for share, x, side in zip(shares, (-REACH, REACH), ("left", "right"), strict=True):
        if share >= 0.005:
            axes.text(x, base, f" {100 * share:.0f} % ", ha=side, va="bottom", fontsize=7)
