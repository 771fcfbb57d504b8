"""What a reader should know about the state of run folders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from grpo_guard.report import per_step
from grpo_guard.report.notation import format_range
from grpo_guard.report.runs import Run

CHANGING_STEPS = (
    "Not every iteration trained the same steps: {runs}. The numbers of a step are averages over"
    " the iterations that trained it, and a gap in a line is a step that was never trained. A"
    " step's share of the gradient is its share among the steps that were trained with it."
)


def list_state_notes(runs: Sequence[Run]) -> list[str]:
    """Return what a reader should know about the state of the run folders."""
    short = [run for run in runs if run.iterations < run.setting("iterations")]
    unfinished = [_describe_progress(run) for run in short if not run.has_ended]
    ended = [_describe_progress(run) for run in short if run.has_ended and not _is_complete(run)]
    changing = [
        f"{run.label} ({_describe_steps(run)})"
        for run in runs
        if not per_step.train_same_steps([run])
    ]
    notes = []
    if unfinished:
        notes.append(f"Unfinished: {', '.join(unfinished)}.")
    if ended:
        notes.append(f"Ended early: {', '.join(ended)}.")
    if changing:
        notes.append(CHANGING_STEPS.format(runs=", ".join(changing)))
    return [*notes, *(damage for run in runs for damage in run.damages)]


def _is_complete(run: Run) -> bool:
    """Whether a run has the evaluation that follows its last planned iteration."""
    return bool(run.rows[-1]["iteration"] >= run.setting("iterations"))


def _describe_progress(run: Run) -> str:
    return f"{run.label} ({run.iterations} of {run.setting('iterations')} iterations)"


def _describe_steps(run: Run) -> str:
    """Write how many steps an iteration trained, which ones, and how often each."""
    steps, mask = per_step.trained_steps(run)
    count = per_step.steps_per_iteration(run)
    times = format_range(np.asarray(mask.sum(0)))
    return (
        f"{count} of steps {steps[0]} to {steps[-1]} at a time,"
        f" each in {times} of {len(mask)} iterations"
    )
