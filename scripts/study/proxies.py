"""The gold against the distance from the base, for proxies of graded quality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from matplotlib import rc_context

from grpo_guard.report.arms import Arm, ArmSet
from grpo_guard.report.comparisons import distance_at
from grpo_guard.report.curves import score_of
from grpo_guard.report.figures.along_run import DISTANCE
from grpo_guard.report.figures.panels import CurveFigure, Panel, lines_along_runs
from grpo_guard.report.figures.plot import PNG_DPI, draw_curves
from grpo_guard.report.settling import settle
from grpo_guard.report.theme import MATPLOTLIB
from study.arms import SEEDS
from study.measures import GOLD

OBJECTIVES = {"vanilla": "vanilla", "guard": "Guard"}
"""Title of each panel, by the beginning of the names of its arms."""
PROXIES = {"": "pickscore", "_quarter": "pickscore_quarter", "_terse": "pickscore_terse"}
"""Rewards from the best proxy to the worst, by the ending of the names of their arms."""


def draw_proxies(arms: Mapping[str, Arm], path: Path) -> None:
    """Write the figure as PNG."""
    with rc_context(MATPLOTLIB):
        draw_curves(compare_proxies(arms)).savefig(path, dpi=PNG_DPI)


def compare_proxies(arms: Mapping[str, Arm]) -> CurveFigure:
    """Return the main gold against the distance from the base, a line for each proxy.

    Arms of which a seed is not finished are left out: intervals of two seeds are too wide to see
    anything beside them. Distances of runs with different proxies compare; their scores do not.
    """
    return CurveFigure(
        name="proxies",
        title="Gold against distance, by proxy",
        reading="Of two proxies at the same distance, the higher one is better.",
        axes=(DISTANCE,),
        panels=tuple(_make_panel(arms, beginning) for beginning in OBJECTIVES),
        is_path=True,
    )


def _make_panel(arms: Mapping[str, Arm], beginning: str) -> Panel:
    names = {beginning + ending: proxy for ending, proxy in PROXIES.items()}
    chosen = tuple(
        replace(arms[name], label=proxy, color=number)
        for number, (name, proxy) in enumerate(names.items())
        if name in arms and len(arms[name].runs) == SEEDS
    )
    settled = settle(ArmSet(title="", arms=chosen))
    lines = lines_along_runs(chosen, settled, score_of(GOLD), {DISTANCE: distance_at})
    return Panel(title=f"{GOLD}, {OBJECTIVES[beginning]}", lines=lines)
