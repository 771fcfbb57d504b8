"""Settles which runs of a set of arms are compared, and at which evaluations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from grpo_guard.report import curves, statistics
from grpo_guard.report.arms import Arm, ArmSet, first_of_seeds
from grpo_guard.report.runs import Run
from grpo_guard.schema import record


@record
class Settled:
    """A set of arms as far as its runs have come."""

    arms: tuple[Arm, ...]
    """The arms, with the runs that have come far enough; arms without any are left out."""
    iterations: Int[ndarray, " N"]
    """The evaluations that all these runs have."""
    left_out: tuple[str, ...]
    """Why runs are left out."""

    @property
    def golds(self) -> tuple[str, ...]:
        """The golds that all runs have evaluated."""
        runs = [run for arm in self.arms for run in arm.runs]
        names = curves.gold_names(runs)
        return tuple(name for name in names if all(f"eval/gold/{name}" in r.rows[0] for r in runs))

    @property
    def pairs(self) -> tuple[tuple[Arm, Arm], ...]:
        """The reference with every other arm."""
        return tuple((self.arms[0], other) for other in self.arms[1:])


def settle(arm_set: ArmSet) -> Settled:
    """Leave out runs that have not come as far as half of the runs have, and repeated ones."""
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
                reason = f"its last evaluation is at iteration {last[run.folder]}, before {horizon}"
            elif run not in firsts:
                reason = "it repeats the seed of another run"
            else:
                continue
            left_out.append(f"{run.label} is left out of means and comparisons: {reason}.")
    kept = tuple(arm for arm in arms if arm.runs)
    evaluated = [curves.proxy_curve(run).iteration for arm in kept for run in arm.runs]
    common = statistics.common_iterations(evaluated)
    return Settled(arms=kept, iterations=common[common <= horizon], left_out=tuple(left_out))


def _last_evaluation(run: Run) -> int:
    return int(curves.proxy_curve(run).iteration.max(initial=-1))
