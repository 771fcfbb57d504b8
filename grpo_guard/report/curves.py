"""Proxy and golds along a run, their errors and trends, and golds at matched proxy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from grpo_guard.report.runs import Run
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

    iteration: Int[ndarray, " N"]
    """The iterations that were evaluated."""
    value: Float[ndarray, " N"]
    """The score, as the mean over the evaluation prompts."""
    error: Float[ndarray, " N"]
    """Standard error of each value; NaN if it is not known."""


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


def gold_curve(run: Run, name: str) -> Curve:
    """Return a gold along the run, with a binomial error (`FRACTION_GOLDS`) or its own scatter."""
    iteration, value = run.series(f"eval/gold/{name}")
    if name in FRACTION_GOLDS:
        error = np.sqrt(value * (1 - value) / run.setting("eval.prompts"))
    else:
        error = np.full(len(value), scatter(value))
    return Curve(iteration=iteration, value=value, error=error)


def proxy_curve(run: Run) -> Curve:
    """Return the proxy along the run, with its own scatter as the error."""
    parts = [
        (weight, *run.series(f"eval/proxy/{name}")) for name, weight in _proxy_weights(run).items()
    ]
    iteration = parts[0][1] if parts else np.empty(0, dtype=int)
    value = sum((weight * values for weight, _, values in parts), np.zeros(len(iteration)))
    return Curve(iteration=iteration, value=value, error=np.full(len(value), scatter(value)))


def scatter(values: Float[ndarray, " N"]) -> float:
    """Return the noise of one value of a smooth curve; NaN for fewer than 5 values.

    It is estimated from second differences, which have 6 times the variance of a value.
    """
    return float(np.sqrt(np.square(np.diff(values, 2)).mean() / 6)) if len(values) > 4 else np.nan


def smooth(
    iteration: Int[ndarray, " N"], value: Float[ndarray, " N"]
) -> tuple[Float[ndarray, " M"], Float[ndarray, " M"]]:
    """Average over a sixth of the run at a time, because iterations have different prompts.

    Each mean is placed at the middle of its iterations.
    """
    if not len(value):
        return iteration.astype(float), value
    width = max(1, len(value) // 6)
    share = np.full(width, 1 / width)
    return np.convolve(iteration, share, mode="valid"), np.convolve(value, share, mode="valid")


def trend(curve: Curve) -> Estimate | None:
    """Return the change over the run by a least-squares line; None for fewer than 4 evaluations.

    The error is from the residuals.
    """
    if len(curve.value) < 4:
        return None
    x = (curve.iteration - curve.iteration.mean()) / np.ptp(curve.iteration)
    slope = (x @ curve.value) / (x @ x)
    residual = curve.value - curve.value.mean() - slope * x
    error = np.sqrt((residual @ residual) / (len(x) - 2) / (x @ x))
    return Estimate(value=float(slope), error=float(error))


def common_proxies(runs: Sequence[Run], points: int = 25) -> Float[ndarray, " G"]:
    """Return evenly spaced proxy values that every run passed through; none if there are none."""
    values = [proxy_curve(run).value for run in runs]
    if min(map(len, values), default=0) < 2:
        return np.empty(0)
    low = max(v.min() for v in values)
    high = min(v.max() for v in values)
    return np.linspace(low, high, points) if high > low else np.empty(0)


def gold_at_proxy(run: Run, name: str, proxies: Float[ndarray, " G"]) -> Estimate | None:
    """Return the mean of a gold over the proxy values; None for fewer than 4 evaluations.

    Between evaluations, sorted by proxy, the gold is interpolated on straight lines. The mean is
    therefore a weighted sum of the evaluations, which gives its error.
    """
    gold = gold_curve(run, name)
    proxy = proxy_curve(run)
    shared, in_gold, in_proxy = np.intersect1d(gold.iteration, proxy.iteration, return_indices=True)
    if len(shared) < 4 or not len(proxies):
        return None
    order = np.argsort(proxy.value[in_proxy], kind="stable")
    x = proxy.value[in_proxy][order]
    y = gold.value[in_gold][order]
    weight = np.array([np.interp(proxies, x, unit).mean() for unit in np.eye(len(x))])
    error = np.sqrt(np.square(weight * gold.error[in_gold][order]).sum())
    return Estimate(value=float(weight @ y), error=float(error))
