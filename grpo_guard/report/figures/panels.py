"""What a figure of curves holds: panels with a line for each arm and a faint one for each seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from grpo_guard.report import statistics
from grpo_guard.report.arms import Arm, mean_label, seed_label
from grpo_guard.report.comparisons import progress_at, replicate
from grpo_guard.report.curves import Curve, CurveOf
from grpo_guard.report.runs import Run
from grpo_guard.report.settling import Settled
from grpo_guard.schema import record

STEP = "denoising step"
RUN_AXES = ("iteration", "images", "hours")
"""What curves along a run can be drawn over; images and hours are those spent before it."""


def axis_title(axis: str) -> str:
    """Return what stands below an axis."""
    return f"{axis} (0 is noise)" if axis == STEP else axis


@record
class Line:
    """One curve of a panel."""

    arm: str
    """Name of its arm."""
    color: int
    """Number of its colour."""
    label: str
    """What it is within its arm, such as "mean of 8 seeds" or "seed 3"."""
    is_mean: bool
    """True: the mean of its arm, or its only seed. False: one seed of several, drawn faintly."""
    is_behind: bool = False
    """Whether it belongs to a study, which is drawn as a band behind the curves of the runs."""
    x: Mapping[str, Float[ndarray, " N"]]
    """Positions along each axis that the panel can be drawn over."""
    y: Float[ndarray, " N"]
    """Heights; NaN breaks the line."""
    low: Float[ndarray, " N"]
    """Lower ends of 95 % intervals; NaN where they are not known."""
    high: Float[ndarray, " N"]
    """Upper ends of 95 % intervals."""


@record
class Panel:
    """A pair of axes with its lines."""

    title: str
    """Heading."""
    lines: tuple[Line, ...]
    """The lines."""
    unit: str = ""
    """Unit of the heights; "%" writes shares in percent."""
    is_logarithmic: bool = False
    """Whether heights are on a logarithmic axis."""
    baseline: float | None = None
    """Height of a line for comparison."""

    @property
    def seed_opacity(self) -> float:
        """Opacity of the lines of single seeds; the more there are, the fainter each is."""
        seeds = sum(not line.is_mean for line in self.lines)
        return min(0.3, max(0.1, 4 / max(seeds, 1)))


@record
class CurveFigure:
    """A figure of curves."""

    name: str
    """Name of its files and of its section."""
    title: str
    """Heading of its section."""
    reading: str
    """How to read it, in one sentence or a few."""
    axes: tuple[str, ...]
    """What it can be drawn over; the first is the default."""
    panels: tuple[Panel, ...]
    """The panels."""
    is_path: bool = False
    """Whether lines may turn back, so that intervals are bars and not bands."""
    shows: Literal["", "scores", "statistics"] = ""
    """What the page explains beside it: the proxies and golds, the picture statistics, or none."""


def lines_along_runs(
    arms: Sequence[Arm], settled: Settled, curve_of: CurveOf, extra: Mapping[str, CurveOf]
) -> tuple[Line, ...]:
    """Return a line for each arm, and one for each seed of an arm of several.

    `extra` are further axes; a run that lacks one of them has no line.
    """
    lines: list[Line] = []
    for arm in arms:
        needed = (curve_of, *extra.values())
        runs = [run for run in arm.runs if all(len(curve(run).value) for curve in needed)]
        if len(arm.runs) > 1:
            lines += [_seed_line(arm, run, curve_of, extra) for run in runs]
        kept = settled.arm_of(arm)
        means = [run for run in runs if kept and run in kept.runs]
        if means:
            lines.append(_mean_line(arm, means, curve_of, extra))
    return tuple(lines)


def lines_behind(
    arms: Sequence[Arm], study: Settled, curve_of: CurveOf, extra: Mapping[str, CurveOf]
) -> tuple[Line, ...]:
    """Return the mean of each arm of a study that has the name of an arm here, in its colour."""
    colors = {arm.label: arm.color for arm in arms}
    known = [replace(a, color=colors[a.label]) for a in study.arms if a.label in colors]
    lines = lines_along_runs(known, replace(study, arms=tuple(known)), curve_of, extra)
    return tuple(
        replace(line, is_behind=True, label=f"the study behind, {line.label}")
        for line in lines
        if line.is_mean
    )


def _seed_line(arm: Arm, run: Run, curve_of: CurveOf, extra: Mapping[str, CurveOf]) -> Line:
    curve = curve_of(run)
    unknown = np.full(len(curve.value), np.nan)
    return Line(
        arm=arm.label,
        color=arm.color,
        label=seed_label(run),
        is_mean=False,
        x=_positions([run], curve.iteration, extra),
        y=curve.value,
        low=unknown,
        high=unknown,
    )


def _mean_line(
    arm: Arm, runs: Sequence[Run], curve_of: CurveOf, extra: Mapping[str, CurveOf]
) -> Line:
    common = statistics.common_iterations([curve_of(run).iteration for run in runs])
    kept = replace(arm, runs=tuple(runs))
    replicates, shared = replicate(kept, curve_of, common)
    mean, low, high = statistics.bootstrap_mean(replicates, same_prompts=shared)
    return Line(
        arm=arm.label,
        color=arm.color,
        label=mean_label(kept),
        is_mean=True,
        x=_positions(runs, common, extra),
        y=mean,
        low=low,
        high=high,
    )


def _positions(
    runs: Sequence[Run], iteration: Int[ndarray, " N"], extra: Mapping[str, CurveOf]
) -> dict[str, Float[ndarray, " N"]]:
    """Return the positions of some iterations along all axes, averaged over runs."""
    axes = {"iteration": iteration.astype(float)}
    for unit in ("images", "hours"):
        axes[unit] = np.mean([progress_at(run, unit, iteration) for run in runs], axis=0)
    for name, x_of in extra.items():
        axes[name] = np.mean([_value_at(x_of(run), iteration) for run in runs], axis=0)
    return axes


def _value_at(curve: Curve, iteration: Int[ndarray, " N"]) -> Float[ndarray, " N"]:
    """Return the values at some iterations; NaN where the curve has none."""
    known = dict(zip(curve.iteration.tolist(), curve.value.tolist(), strict=True))
    return np.array([known.get(int(i), np.nan) for i in iteration])
