"""Figures of curves along the runs: golds against the proxy, scores, signal, pictures, speed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from grpo_guard.report import curves
from grpo_guard.report.arms import Arm, proxy_names
from grpo_guard.report.comparisons import distance_at
from grpo_guard.report.curves import PROXY, Curve, CurveOf, score_of
from grpo_guard.report.figures.panels import (
    RUN_AXES,
    CurveFigure,
    Panel,
    lines_along_runs,
    lines_behind,
)
from grpo_guard.report.runs import Run
from grpo_guard.report.settling import Settled

DISTANCE = "sqrt(KL)"
MOST_POINTS = 60
"""Points of a curve with a value at every iteration; more are averaged."""
BEHIND = " Bands are the means of the study behind, with their intervals."

SIGNALS = {
    "advantage/zero_std_groups": ("groups whose rewards are all equal", "%"),
    "reward/group_std": ("reward spread within a group", ""),
    "grad_norm": ("gradient norm before clipping", ""),
}
"""What shows whether an iteration has anything to learn from: title and unit by metric key."""


def over_optimization(
    arms: Sequence[Arm], settled: Settled, study: Settled | None = None
) -> CurveFigure:
    """Return every gold against the proxy, and against the distance from the base model.

    The arms of a study lie behind those of their names.
    """
    proxy = " or ".join(proxy_names(arms)) or PROXY
    extra: dict[str, CurveOf] = {f"proxy ({proxy})": score_of(PROXY)}
    if all(run.keys("eval/kl") for arm in arms for run in arm.runs):
        extra[DISTANCE] = distance_at
    return CurveFigure(
        name="over_optimization",
        title="Gold against proxy",
        reading="A curve begins at the hollow point, before training. One that moves right and then"
        " down gains proxy at the cost of gold; of two at the same place, the higher one is better."
        " Bars are 95 % intervals over seeds and prompts. Over sqrt(KL), place is the distance from"
        f" the base model.{BEHIND if study else ''}",
        axes=tuple(extra),
        panels=tuple(
            Panel(
                title=name,
                lines=(
                    *(lines_behind(arms, study, score_of(name), extra) if study else ()),
                    *lines_along_runs(arms, settled, score_of(name), extra),
                ),
            )
            for name in _golds(arms)
        ),
        is_path=True,
        shows="scores",
    )


def scores(arms: Sequence[Arm], settled: Settled) -> CurveFigure:
    """Return proxy, golds, distance and training reward along the run."""
    proxy = " or ".join(proxy_names(arms)) or PROXY
    curve_of = {f"proxy: {proxy}": score_of(PROXY)}
    curve_of |= {f"gold: {name}": score_of(name) for name in _golds(arms)}
    curve_of["distance from the base, sqrt(KL)"] = distance_at
    curve_of["reward in training"] = _averaged("reward/total", arms)
    return CurveFigure(
        name="evaluations",
        title="Along the run",
        reading="Proxy and golds are on the same held-out prompts and noise at every evaluation;"
        " bands are 95 % intervals over seeds and prompts, and faint lines are single seeds.",
        axes=RUN_AXES,
        panels=_panels(arms, settled, curve_of),
        shows="scores",
    )


def signal(arms: Sequence[Arm], settled: Settled) -> CurveFigure:
    """Return what an iteration had to learn from."""
    return CurveFigure(
        name="signal",
        title="What there was to learn from",
        reading="A group whose rewards are all equal teaches nothing; if such groups become common"
        " or rewards spread less, training slows down whatever the objective.",
        axes=RUN_AXES,
        panels=_panels(
            arms,
            settled,
            {title: _averaged(key, arms) for key, (title, _) in SIGNALS.items()},
            dict(SIGNALS.values()),
        ),
    )


def picture_statistics(arms: Sequence[Arm], settled: Settled) -> CurveFigure:
    """Return plain measures of the held-out pictures and of the training samples."""
    runs = [run for arm in arms for run in arm.runs]
    curve_of: dict[str, CurveOf] = {}
    for name in curves.statistic_names(runs):
        words = name.rpartition("/")[2].replace("_", " ")
        if any(run.keys(f"eval/gold/{name}") for run in runs):
            curve_of[f"{words}, held-out pictures"] = score_of(name)
        curve_of[f"{words}, training samples"] = _averaged(f"watch/{name}", arms)
    return CurveFigure(
        name="statistics",
        title="Picture statistics",
        reading="These measures are neither good nor bad: a drift is a change of style that no gold"
        " asks for. Diversity is how unlike the samples of one prompt are; it falls when a policy"
        " collapses.",
        axes=RUN_AXES,
        panels=_panels(arms, settled, curve_of),
        shows="statistics",
    )


def times(arms: Sequence[Arm], settled: Settled) -> CurveFigure:
    """Return images per second and the seconds of each part of an iteration."""
    runs = [run for arm in arms for run in arm.runs]
    parts = sorted({part for run in runs for part in run.seconds()})
    curve_of = {"images per second": _averaged("throughput/images_per_s", arms)}
    curve_of |= {f"{part}, seconds": _averaged(f"time/{part}", arms) for part in parts}
    return CurveFigure(
        name="times",
        title="Where the time went",
        reading="Images per second count the samples that are trained on; the other panels are"
        " seconds of one iteration, or of one evaluation.",
        axes=RUN_AXES,
        panels=_panels(arms, settled, curve_of),
    )


def _golds(arms: Sequence[Arm]) -> tuple[str, ...]:
    return curves.gold_names([run for arm in arms for run in arm.runs])


def _panels(
    arms: Sequence[Arm],
    settled: Settled,
    curve_of: Mapping[str, CurveOf],
    units: Mapping[str, str] | None = None,
) -> tuple[Panel, ...]:
    """Return a panel for every curve that some run has."""
    panels = (
        Panel(
            title=title,
            lines=lines_along_runs(arms, settled, curve, {}),
            unit=(units or {}).get(title, ""),
        )
        for title, curve in curve_of.items()
    )
    return tuple(panel for panel in panels if panel.lines)


def _averaged(key: str, arms: Sequence[Arm]) -> CurveOf:
    """Return a function that averages a metric of every iteration over equal parts of the run.

    All runs have the same parts, so that seeds can be averaged. A mean lies at the middle of its
    part, in whole iterations.
    """
    longest = max(len(run.series(key)[0]) for arm in arms for run in arm.runs)
    width = max(1, math.ceil(longest / MOST_POINTS))

    def average(run: Run) -> Curve:
        iteration, value = run.series(key)
        part = iteration // width
        # the last part may have only begun
        if width > 1 and len(iteration) and (iteration[-1] + 1) % width and part[0] != part[-1]:
            keep = part < part[-1]
            part, value = part[keep], value[keep]
        parts, place = np.unique(part, return_inverse=True)
        mean = np.bincount(place, value) / np.bincount(place) if len(parts) else value
        unknown = np.full(len(parts), np.nan)
        return Curve(iteration=parts * width + (width - 1) // 2, value=mean, error=unknown)

    return average
