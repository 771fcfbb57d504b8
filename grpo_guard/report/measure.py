"""What runs measured, averaged over their iterations, with standard errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from grpo_guard.report.runs import Run
from grpo_guard.types import record

Kind = Literal["raw", "norm", "own"]

STATISTICS = (
    "dark_fraction",
    "edge_density",
    "color_entropy",
    "saturation",
    "grid_energy",
    "diversity",
)
"""Plain measures of pictures, watched in rollouts or kept among the golds, but neither good nor bad."""

FIRST = ("exact", "facts", "clean", "pickscore_gold")
"""Golds in the order in which they are shown; others follow by name."""

SHARES = ("exact", "facts")
"""Golds that are 0 or 1 on every prompt, or a share of few facts: a binomial standard error is exact, or a bound."""


@record
class Ratio:
    """Ratio - 1 at each trained step over all iterations; `error` is the standard error of the mean.

    `rows` (sample, step) pairs went into a step's mean and std at each of the `iterations` that trained it.
    """

    step: Int[ndarray, " S"]
    mean: Float[ndarray, " S"]
    error: Float[ndarray, " S"]
    std: Float[ndarray, " S"]
    rows: float
    iterations: Int[ndarray, " S"]

    @property
    def shift(self) -> Float[ndarray, " S"]:
        """The mean in units of the spread."""
        return _over(self.mean, self.std)

    @property
    def significance(self) -> Float[ndarray, " S"]:
        """The mean in units of its standard error."""
        return _over(self.mean, self.error)


@record
class Clip:
    """Shares of the rows on which the clip acts: of A > 0 above the range, of A < 0 below it."""

    step: Int[ndarray, " S"]
    high: Float[ndarray, " S"]
    low: Float[ndarray, " S"]

    @property
    def imbalance(self) -> float:
        """sum |high - low| / sum (high + low) over steps: 0 is alike on every step, 1 one side only; NaN if idle."""
        total = float((self.high + self.low).sum())
        return float(np.abs(self.high - self.low).sum()) / total if total else np.nan


@record
class Curve:
    """An evaluation along a run; `error` is the standard error of each value (NaN where it cannot be told)."""

    iteration: Int[ndarray, " N"]
    value: Float[ndarray, " N"]
    error: Float[ndarray, " N"]


@record
class Estimate:
    """A number and its standard error."""

    value: float
    error: float

    @property
    def significance(self) -> float:
        """How many standard errors it lies from 0."""
        return self.value / self.error if self.error > 0 else 0.0


def table(run: Run, prefix: str) -> tuple[Int[ndarray, " S"], Float[ndarray, "N S"]]:
    """Keys `prefix/tt` as (steps, one row per iteration that has any, NaN where it lacks one)."""
    keys = run.keys(f"{prefix}/")
    rows = [
        [row.get(key, np.nan) for key in keys] for row in run.rows if any(k in row for k in keys)
    ]
    steps = np.array([int(key.rpartition("/")[2]) for key in keys], dtype=int)
    return steps, np.array(rows, dtype=float).reshape(len(rows), len(keys))


def per_step(run: Run, prefix: str) -> tuple[Int[ndarray, " S"], Float[ndarray, " S"]]:
    """Keys `prefix/tt` averaged over iterations; no steps where there are none."""
    steps, rows = table(run, prefix)
    return (steps, np.nanmean(rows, 0)) if len(rows) else (steps, np.empty(0))


def trained(run: Run) -> tuple[Int[ndarray, " S"], Bool[ndarray, "N S"]]:
    """Every step that some iteration trained, and which of them each iteration did."""
    steps, shares = table(run, "grad_share")
    return steps, ~np.isnan(shares)


def window(run: Run) -> int:
    """How many steps an iteration trains; 0 where none did yet."""
    return int(trained(run)[1].sum(1).max(initial=0))


def same_steps(runs: Sequence[Run]) -> bool:
    """Whether all iterations of all runs trained the same steps."""
    found = [trained(run) for run in runs]
    return all(at.all() and np.array_equal(steps, found[0][0]) for steps, at in found)


def ratio(run: Run, kind: Kind) -> Ratio | None:
    """Means and spreads of a ratio over all iterations, or None where it was not measured or never left 1.

    The standard error is the larger of two: from the spread of rows, and from the scatter of iterations' means, which
    also sees that the rows of one iteration share an update.
    """
    steps, means = table(run, f"ratio_{kind}/mean")
    _, stds = table(run, f"ratio_{kind}/std")
    if stds.shape != means.shape or not np.nansum(stds) > 0:
        return None
    count, mean = (~np.isnan(means)).sum(0), np.nanmean(means, 0)
    rows = rows_per_step(run, int((~np.isnan(means)).sum(1).max()))
    std = np.sqrt(np.nanmean(np.square(stds), 0))
    between = np.sqrt(np.nansum(np.square(means - mean), 0) / np.maximum(count - 1, 1) / count)
    error = np.maximum(std / np.sqrt(rows * count), between)
    return Ratio(step=steps, mean=mean, error=error, std=std, rows=rows, iterations=count)


def rows_per_step(run: Run, steps: int) -> float:
    """How many rows see each of an iteration's steps after its first update, on which every ratio is 1."""
    samples, updates = (
        run.setting("data.prompts") * run.setting("data.repeats"),
        run.setting("updates"),
    )
    after_first = (updates - 1) / updates if updates > 1 else 1.0
    return float(samples * after_first * (run.setting("steps_per_sample") or steps) / steps)


def spread(values: Float[ndarray, " S"]) -> float:
    """Largest over smallest; NaN where there is nothing to compare."""
    return float(values.max() / values.min()) if len(values) > 1 and values.min() > 0 else np.nan


def ratio_spread(run: Run, kind: Kind) -> float:
    """Largest over smallest standard deviation of a ratio over steps; `own` is the one that the run optimises."""
    found = ratio(run, kind)
    return spread(found.std) if found else np.nan


def gradient_spread(run: Run) -> float:
    """Largest over smallest share of the gradient over steps; NaN where not every iteration trained all of them."""
    return spread(per_step(run, "grad_share")[1]) if same_steps([run]) else np.nan


def clip(run: Run) -> Clip | None:
    """How often the clip acts, over all iterations, at steps with rows of either sign; None where there are none."""
    (above, high), (below, low) = (
        per_step(run, f"clip/{side}") for side in ("high_pos_adv", "low_neg_adv")
    )
    steps, ups, downs = np.intersect1d(above, below, return_indices=True)
    return Clip(step=steps, high=high[ups], low=low[downs]) if len(steps) else None


def proxy_name(run: Run) -> str | None:
    """What the reward that the run trains on is made of, as far as it is evaluated."""
    return " + ".join(_proxy_parts(run)) or None


def _proxy_parts(run: Run) -> dict[str, float]:
    """The evaluated rewards whose weighted sum is trained on: a mixture's, or the one that equals the total."""
    names = [key.removeprefix("eval/proxy/") for key in run.keys("eval/proxy/")]
    reward = run.config.get("reward", {})
    weights = {name: float(weight) for name, weight in reward.get("weights", {}).items()}
    if weights and set(weights) <= set(names):
        return weights
    total = dict(zip(*run.series("reward/total"), strict=True))

    def distance(name: str) -> float:
        part = [
            abs(value - total[i])
            for i, value in zip(*run.series(f"reward/{name}"), strict=True)
            if i in total
        ]
        return max(part, default=np.inf)

    return dict.fromkeys(sorted(names, key=distance)[:1], 1.0)


def gold_names(runs: Sequence[Run]) -> tuple[str, ...]:
    """The golds of any of the runs, those best known first."""
    names = {key.removeprefix("eval/gold/") for run in runs for key in run.keys("eval/gold/")}
    golds = [name for name in names if not is_statistic(name)]
    return tuple(
        sorted(golds, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
    )


def statistic_names(runs: Sequence[Run]) -> tuple[str, ...]:
    """The plain picture statistics of any of the runs, of held-out pictures or of rollouts."""
    kinds = ("eval/gold/", "watch/")
    names = {key.removeprefix(kind) for run in runs for kind in kinds for key in run.keys(kind)}
    return tuple(sorted(filter(is_statistic, names)))


def is_statistic(name: str) -> bool:
    """Whether a gold is a plain picture statistic."""
    return name.rpartition("/")[2] in STATISTICS


def gold(run: Run, name: str) -> Curve:
    """A gold along the run; its error is binomial over the prompts (see `SHARES`) or from its own scatter."""
    iteration, value = run.series(f"eval/gold/{name}")
    if name in SHARES:
        error = np.sqrt(value * (1 - value) / run.setting("eval.prompts"))
    else:
        error = np.full(len(value), scatter(value))
    return Curve(iteration=iteration, value=value, error=error)


def proxy(run: Run) -> Curve:
    """The proxy along the run; its error is from its own scatter."""
    parts = [
        (weight, *run.series(f"eval/proxy/{name}")) for name, weight in _proxy_parts(run).items()
    ]
    iteration = parts[0][1] if parts else np.empty(0, dtype=int)
    value = sum((weight * values for weight, _, values in parts), np.zeros(len(iteration)))
    return Curve(iteration=iteration, value=value, error=np.full(len(value), scatter(value)))


def scatter(values: Float[ndarray, " N"]) -> float:
    """The noise of one value of a smooth curve, from its second differences; NaN under 5 values."""
    return float(np.sqrt(np.square(np.diff(values, 2)).mean() / 6)) if len(values) > 4 else np.nan


def smooth(
    iteration: Int[ndarray, " N"], value: Float[ndarray, " N"]
) -> tuple[Float[ndarray, " M"], Float[ndarray, " M"]]:
    """Means over a sixth of the run at a time, each at the middle of its iterations: prompts differ between them."""
    if not len(value):
        return iteration.astype(float), value
    width = max(1, len(value) // 6)
    share = np.full(width, 1 / width)
    return np.convolve(iteration, share, mode="valid"), np.convolve(value, share, mode="valid")


def trend(curve: Curve) -> Estimate | None:
    """The change over the run by a least-squares line, its error from the residuals; None under 4 evaluations."""
    if len(curve.value) < 4:
        return None
    x = (curve.iteration - curve.iteration.mean()) / np.ptp(curve.iteration)
    slope = (x @ curve.value) / (x @ x)
    residual = curve.value - curve.value.mean() - slope * x
    return Estimate(
        value=float(slope), error=float(np.sqrt((residual @ residual) / (len(x) - 2) / (x @ x)))
    )


def common_proxies(runs: Sequence[Run], points: int = 25) -> Float[ndarray, " G"]:
    """Evenly spaced proxy values that every run passed through; none where there is no such range."""
    curves = [proxy(run).value for run in runs]
    if min(map(len, curves), default=0) < 2:
        return np.empty(0)
    low, high = max(c.min() for c in curves), min(c.max() for c in curves)
    return np.linspace(low, high, points) if high > low else np.empty(0)


def at_proxy(run: Run, name: str, proxies: Float[ndarray, " G"]) -> Estimate | None:
    """A gold at given proxy values, averaged over them: evaluations sorted by proxy, joined by straight lines."""
    curve, along = gold(run, name), proxy(run)
    shared, mine, theirs = np.intersect1d(curve.iteration, along.iteration, return_indices=True)
    if len(shared) < 4 or not len(proxies):
        return None
    order = np.argsort(along.value[theirs], kind="stable")
    x, y = along.value[theirs][order], curve.value[mine][order]
    weight = np.array([np.interp(proxies, x, unit).mean() for unit in np.eye(len(x))])
    error = np.sqrt(np.square(weight * curve.error[mine][order]).sum())
    return Estimate(value=float(weight @ y), error=float(error))


def _over(values: Float[ndarray, " S"], unit: Float[ndarray, " S"]) -> Float[ndarray, " S"]:
    """The quotient, 0 where the unit is."""
    return values * (unit > 0) / np.where(unit > 0, unit, 1)


def seconds(run: Run) -> dict[str, float]:
    """Seconds spent in each part of the run."""
    keys = [key for key in run.keys("time/") if key != "time/total"]
    return {key.removeprefix("time/"): float(run.series(key)[1].sum()) for key in keys}
