"""Settles which runs of a set of arms are compared, and at which evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from grpo_guard.report import curves, statistics
from grpo_guard.report.arms import Arm, ArmSet, first_of_seeds
from grpo_guard.report.runs import Run
from grpo_guard.schema import record

LEFT_OUT = "is left out of means and comparisons"


@record
class Settled:
    """A set of arms as far as its runs have come."""

    arms: tuple[Arm, ...]
    """The arms, with the runs that have come far enough; arms without any are left out."""
    iterations: Int[ndarray, " N"]
    """The evaluations that all these runs have."""
    golds: tuple[str, ...]
    """The golds that all these runs have at all these evaluations."""
    left_out: tuple[str, ...]
    """Why runs and golds are left out, and which arm is the reference in place of the chosen."""

    @property
    def pairs(self) -> tuple[tuple[Arm, Arm], ...]:
        """The reference with every other arm."""
        return tuple((self.arms[0], other) for other in self.arms[1:])

    def arm_of(self, arm: Arm) -> Arm | None:
        """Return an arm of the set with the runs that are kept; None if none of them is."""
        return next((kept for kept in self.arms if kept.label == arm.label), None)


def settle(arm_set: ArmSet) -> Settled:
    """Leave out runs that have not come as far as half of the runs have, and repeated ones.

    A gold that one of the others lacks at one of their common evaluations is left out as well.
    """
    last = {run.folder: _last_evaluation(run) for run in arm_set.runs}
    horizon = int(np.quantile(list(last.values()), 0.5, method="lower"))
    arms = list[Arm]()
    left_out = list[str]()
    for arm in arm_set.arms:
        far = [run for run in arm.runs if last[run.folder] >= horizon]
        firsts = first_of_seeds(far)
        arms.append(replace(arm, runs=firsts))
        for run in arm.runs:
            if run not in far:
                reason = _explain_shortness(last[run.folder], horizon)
            elif run not in firsts:
                reason = "it repeats the seed of another run"
            else:
                continue
            left_out.append(f"{run.label} {LEFT_OUT}: {reason}.")
    kept = tuple(arm for arm in arms if arm.runs)
    if not arms[0].runs and len(kept) > 1:
        left_out.append(f"No run of {arms[0].label} is left: {kept[0].label} is the reference.")
    runs = [run for arm in kept for run in arm.runs]
    common = statistics.common_iterations([curves.proxy_curve(run).iteration for run in runs])
    iterations = common[common <= horizon]
    golds, without = _settle_golds(runs, iterations)
    return Settled(arms=kept, iterations=iterations, golds=golds, left_out=(*left_out, *without))


def _explain_shortness(last: int, horizon: int) -> str:
    """Say why a run that has come as far as `last` is left out."""
    if last < 0:
        return "it has no evaluation of the proxy"
    return f"its last evaluation is at iteration {last}, before {horizon}"


def _settle_golds(
    runs: Sequence[Run], iterations: Int[ndarray, " N"]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the golds that all runs have at all evaluations, and why others are left out."""
    golds, left_out = list[str](), list[str]()
    for name in curves.gold_names(runs) if len(iterations) else ():
        lacking = (
            (run, missing[0])
            for run in runs
            if len(missing := np.setdiff1d(iterations, run.series(f"eval/gold/{name}")[0]))
        )
        run, iteration = next(lacking, (None, None))
        if run is None:
            golds.append(name)
        else:
            reason = f"{run.label} has no value of it at iteration {iteration}"
            left_out.append(f"{name} {LEFT_OUT}: {reason}.")
    return tuple(golds), tuple(left_out)


def _last_evaluation(run: Run) -> int:
    """Return the iteration of a run's last evaluation of the proxy; -1 without any."""
    return int(curves.proxy_curve(run).iteration.max(initial=-1))
