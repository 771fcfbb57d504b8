"""The figures of curves, in the order of the page."""

from __future__ import annotations

from grpo_guard.report.arms import ArmSet
from grpo_guard.report.figures import along_run, by_step
from grpo_guard.report.figures.panels import CurveFigure
from grpo_guard.report.settling import Settled


def list_figures(
    arm_set: ArmSet, settled: Settled, study: Settled | None = None
) -> tuple[CurveFigure, ...]:
    """Return every figure of a set of arms; one that nothing was measured for has no panels.

    Golds against the proxy are drawn with a study behind them, if there is one.
    """
    arms = arm_set.arms
    return (
        along_run.over_optimization(arms, settled, study),
        along_run.scores(arms, settled),
        along_run.signal(arms, settled),
        by_step.ratios(arms, settled),
        by_step.clipped_rows(arms, settled),
        by_step.gradient_shares(arms, settled),
        along_run.picture_statistics(arms, settled),
        along_run.times(arms, settled),
    )
