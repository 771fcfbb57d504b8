"""One number for a finished run, by which a sweep can judge it: the golds at matched proxy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from grpo_guard.report.measure import gold, gold_names, proxy
from grpo_guard.report.runs import read

GAIN = 0.05
"""Share of its value before training by which the proxy must have grown."""


def objective(folder: Path, gain: float = GAIN) -> float | None:
    """The mean over golds of gold / gold before training, where the proxy first gained `gain`; None if it never did.

    Runs of one backbone, reward and `eval` begin with the same proxy, so that equal gains are equal proxies: matched.
    The gold is read between two evaluations on a straight line. A gold that begins at 0 or below has no ratio and is
    left out (arXiv 2510.22319 shows golds as such ratios). Raises ConfigError where the folder is no run.
    """
    if not (folder / "metrics.jsonl").is_file():
        return None
    run = read(folder)
    along, golds = proxy(run), [gold(run, name) for name in gold_names([run])]
    at = crossing(along.value, gain)
    if at is None:
        return None
    when = float(np.interp(at, np.arange(len(along.iteration)), along.iteration))
    ratios = [np.interp(when, c.iteration, c.value) / c.value[0] for c in golds if c.value[0] > 0]
    return float(np.mean(ratios)) if ratios else None


def crossing(values: Float[ndarray, " N"], gain: float) -> float | None:
    """Where, in evaluations, a curve first is `gain` of its start's size above its start; None if it never is."""
    if not len(values):
        return None
    target = values[0] + gain * abs(values[0])
    after = np.flatnonzero((values >= target) & (values > values[0]))
    if not len(after):
        return None
    last = int(after[0])
    return float(last - (values[last] - target) / (values[last] - values[last - 1]))
