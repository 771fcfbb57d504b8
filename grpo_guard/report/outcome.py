"""One number for a finished run, which a hyperparameter search maximises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from grpo_guard.report.curves import gold_curve, gold_names, proxy_curve
from grpo_guard.report.reading import read_run

GAIN = 0.05
"""Relative gain of the proxy at which the golds are compared."""


def search_objective(folder: Path, gain: float = GAIN) -> float | None:
    """Return the mean of gold / (gold before training) where the proxy first gained `gain`.

    None if the proxy never gained as much. Runs with the same backbone, reward and `eval` begin
    with the same proxy, so that equal gains are equal proxies. The gold is interpolated on a
    straight line between two evaluations. A gold that begins at 0 or below, or lacks a value before
    training, has no ratio and is left out (arXiv 2510.22319 shows golds as such ratios).
    Raises ConfigError if the folder is not a run's.
    """
    if not (folder / "metrics.jsonl").is_file():
        return None
    run = read_run(folder)
    proxy = proxy_curve(run)
    golds = [gold_curve(run, name) for name in gold_names([run])]
    at = first_crossing(proxy.value, gain)
    if at is None:
        return None
    iteration = float(np.interp(at, np.arange(len(proxy.iteration)), proxy.iteration))
    ratios = [
        np.interp(iteration, gold.iteration, gold.value) / gold.value[0]
        for gold in golds
        if gold.value[0] > 0 and gold.iteration[0] == proxy.iteration[0]
    ]
    return float(np.mean(ratios)) if ratios else None


def first_crossing(values: Float[ndarray, " N"], gain: float) -> float | None:
    """Return the index, interpolated, where a curve first gains `gain` times the size of its start.

    None if it never does.
    """
    if not len(values):
        return None
    target = values[0] + gain * abs(values[0])
    after = np.flatnonzero((values >= target) & (values > values[0]))
    if not len(after):
        return None
    last = int(after[0])
    return float(last - (values[last] - target) / (values[last] - values[last - 1]))
