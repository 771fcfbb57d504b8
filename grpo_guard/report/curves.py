"""Proxy and golds along a run, with their errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from grpo_guard.report.runs import Run
from grpo_guard.report.statistics import common_iterations
from grpo_guard.schema import record

STATISTICS = (
    "dark_fraction",
    "edge_density",
    "color_entropy",
    "saturation",
    "grid_energy",
    "diversity",
)
"""Plain measures of pictures. They are evaluated like golds, but are neither good nor bad."""

PROXY = "proxy"
"""Name of the proxy among the scores of a run."""

GOLD_ORDER = ("exact", "facts", "clean", "pickscore_gold")
"""Golds that the page shows first; others follow by name."""

FRACTION_GOLDS = ("exact", "facts")
"""Golds with a binomial standard error.

`exact` is 0 or 1 on every prompt, so the error is right. `facts` is the fraction of a few facts, so
the error is an upper bound.
"""


@record
class Curve:
    """A score along a run."""

    name: str = ""
    """Name of the score, such as "exact"; it tells the noise of one score from that of another."""
    iteration: Int[ndarray, " N"]
    """The iterations that were evaluated."""
    value: Float[ndarray, " N"]
    """The score, as the mean over the evaluation prompts."""
    error: Float[ndarray, " N"]
    """Standard error of each value; NaN if it is not known."""
    by_prompt: Float[ndarray, "N Q"] | None = None
    """The score of each prompt, if the run folder has them of all prompts."""

    def at(self, iterations: Int[ndarray, " M"]) -> Curve:
        """Return the curve at some of its iterations, which must all be there."""
        rows = np.flatnonzero(np.isin(self.iteration, iterations))
        assert np.array_equal(self.iteration[rows], iterations), f"{self.name} lacks an iteration"
        return replace(
            self,
            iteration=iterations,
            value=self.value[rows],
            error=self.error[rows],
            by_prompt=None if self.by_prompt is None else self.by_prompt[rows],
        )


CurveOf = Callable[[Run], Curve]
"""Takes a score of a run."""


@record
class Estimate:
    """A number and its standard error."""

    value: float
    """The number."""
    error: float
    """Its standard error."""

    @property
    def significance(self) -> float:
        """The value in standard errors; 0 if the error is 0 or NaN."""
        return self.value / self.error if self.error > 0 else 0.0


def proxy_name(run: Run) -> str | None:
    """Return the name of the reward that the run trains on; None if it is not evaluated."""
    return " + ".join(_proxy_weights(run)) or None


def _proxy_weights(run: Run) -> dict[str, float]:
    """Return the weights of the evaluated rewards whose sum the run trains on.

    These are the parts of a mixture, or else the one reward that equals the total in training.
    """
    names = [key.removeprefix("eval/proxy/") for key in run.keys("eval/proxy/")]
    reward = run.config.get("reward", {})
    weights = {name: float(weight) for name, weight in reward.get("weights", {}).items()}
    if weights and set(weights) <= set(names):
        return weights
    total = dict(zip(*run.series("reward/total"), strict=True))

    def distance(name: str) -> float:
        part = zip(*run.series(f"reward/{name}"), strict=True)
        return max((abs(value - total[i]) for i, value in part if i in total), default=np.inf)

    return dict.fromkeys(sorted(names, key=distance)[:1], 1.0)


def gold_names(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return the golds that any of the runs evaluated, those of `GOLD_ORDER` first."""
    names = {key.removeprefix("eval/gold/") for run in runs for key in run.keys("eval/gold/")}
    first = [name for name in GOLD_ORDER if name in names]
    others = [name for name in names if name not in GOLD_ORDER and not is_statistic(name)]
    return (*first, *sorted(others))


def statistic_names(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return the picture statistics of any of the runs, of held-out pictures or of rollouts."""
    prefixes = ("eval/gold/", "watch/")
    names = {
        key.removeprefix(prefix) for run in runs for prefix in prefixes for key in run.keys(prefix)
    }
    return tuple(sorted(filter(is_statistic, names)))


def is_statistic(name: str) -> bool:
    """Whether a score is a plain picture statistic."""
    return name.rpartition("/")[2] in STATISTICS


@cache
def score_of(name: str) -> CurveOf:
    """Return the function that takes the proxy (`PROXY`) or a gold of a run; always the same."""
    return proxy_curve if name == PROXY else lambda run: gold_curve(run, name)


def gold_curve(run: Run, name: str) -> Curve:
    """Return a gold along the run, with a binomial error (`FRACTION_GOLDS`) or its own scatter."""
    iteration, value = run.series(f"eval/gold/{name}")
    if name in FRACTION_GOLDS:
        error = np.sqrt(value * (1 - value) / run.setting("eval.prompts"))
    else:
        error = np.full(len(value), scatter(value))
    by_prompt = scores_by_prompt(run, {f"eval/gold/{name}": 1.0}, iteration)
    return Curve(name=name, iteration=iteration, value=value, error=error, by_prompt=by_prompt)


def proxy_curve(run: Run) -> Curve:
    """Return the proxy along the run, with its own scatter as the error.

    An evaluation that lacks a part of a mixture is left out.
    """
    weights = {f"eval/proxy/{name}": weight for name, weight in _proxy_weights(run).items()}
    parts = [(weight, *run.series(key)) for key, weight in weights.items()]
    iteration = common_iterations([own for _, own, _ in parts])
    value = np.zeros(len(iteration))
    for weight, own, values in parts:
        value += weight * values[np.isin(own, iteration)]
    error = np.full(len(value), scatter(value))
    by_prompt = scores_by_prompt(run, weights, iteration)
    return Curve(name=PROXY, iteration=iteration, value=value, error=error, by_prompt=by_prompt)


def scores_by_prompt(
    run: Run, weights: Mapping[str, float], iteration: Int[ndarray, " N"]
) -> Float[ndarray, "N Q"] | None:
    """Return the weighted score of each prompt that has one in any of these evaluations.

    NaN where a single evaluation lacks it. None unless the folder has the scores of all prompts at
    every one of these iterations.
    """
    evaluations = [run.prompt_scores.get(int(i), {}) for i in iteration]
    if not weights or not evaluations or not all(weights.keys() <= e.keys() for e in evaluations):
        return None
    counts = {len(evaluation[key]) for evaluation in evaluations for key in weights}
    if len(counts) != 1:
        return None
    rows = [sum(w * evaluation[key] for key, w in weights.items()) for evaluation in evaluations]
    values = np.array(rows, dtype=float)
    scored = np.isfinite(values).any(axis=0)
    return values[:, scored] if scored.any() else None


def scatter(values: Float[ndarray, " N"]) -> float:
    """Return the noise of one value of a smooth curve; NaN for fewer than 5 values.

    It is estimated from second differences, which have 6 times the variance of a value.
    """
    return float(np.sqrt(np.square(np.diff(values, 2)).mean() / 6)) if len(values) > 4 else np.nan
