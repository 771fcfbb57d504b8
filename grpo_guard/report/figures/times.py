"""Seconds per iteration, by part of the run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from grpo_guard.report.figures.panels import make_panels, styled
from grpo_guard.report.runs import Run
from grpo_guard.report.theme import INK_COLORS, MUTED_COLORS


@styled
def draw_times(runs: Sequence[Run]) -> Figure:
    """Draw a bar per run, the longest part first; evaluations are spread over all iterations."""
    figure, panels = make_panels(1, 1, 0.55 * len(runs) + 1.2)
    axes = panels[0]
    seconds = [
        {part: total / max(run.iterations, 1) for part, total in run.seconds().items()}
        for run in runs
    ]
    longest = max(sum(parts.values(), 0.0) for parts in seconds)
    left = np.zeros(len(runs))
    parts = _sort_parts(seconds)
    for shade, part in zip(np.linspace(0.85, 0.2, len(parts)), parts, strict=True):
        width = np.array([run_seconds.get(part, 0.0) for run_seconds in seconds])
        bars = axes.barh(
            range(len(runs)), width, left=left, height=0.62, color=MUTED_COLORS[0], alpha=shade,
            label=part,
        )  # fmt: skip
        # a narrower part has no room for its number
        texts = [f"{w:.3g} s" if w > 0.06 * longest else "" for w in width]
        color = "#ffffff" if shade > 0.6 else INK_COLORS[0]
        axes.bar_label(bars, texts, label_type="center", fontsize=8, color=color)
        left += width
    labels = [run.label for run in runs]
    axes.set(xlabel="seconds per iteration", yticks=range(len(runs)), yticklabels=labels)
    axes.grid(axis="y", visible=False)
    axes.invert_yaxis()
    figure.legend(loc="outside upper left", ncols=len(parts))
    return figure


def _sort_parts(seconds: Sequence[dict[str, float]]) -> list[str]:
    """Return the parts of any run, the longest over all runs first."""
    names = {part for parts in seconds for part in parts}
    return sorted(names, key=lambda part: -sum(parts.get(part, 0.0) for parts in seconds))
