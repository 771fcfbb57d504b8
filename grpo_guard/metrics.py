"""Metrics that carry their own reduction: sums and counts travel, the division happens once, at the end."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grpo_guard.ratio import log_ratio_norm, log_ratio_raw
from grpo_guard.types import Replay, Schedule, record


@runtime_checkable
class Metric(Protocol):
    """Anything that can be added to its like and then read."""

    def __add__(self, other: Any) -> Any: ...

    @property
    def value(self) -> float: ...


Metrics = Mapping[str, Metric]


@record
class Mean:
    """A sum and how many numbers went into it."""

    sum: float
    count: float

    def __add__(self, other: Mean) -> Mean:
        return Mean(sum=self.sum + other.sum, count=self.count + other.count)

    @property
    def value(self) -> float:
        return self.sum / self.count if self.count else math.nan


@record
class Std:
    """Count, mean and summed squared deviation; parts are joined by Chan's formula."""

    count: float
    mean: float
    squares: float

    def __add__(self, other: Std) -> Std:
        count, delta = self.count + other.count, other.mean - self.mean
        share = other.count / count if count else 0.0
        squares = self.squares + other.squares + delta**2 * self.count * share
        return Std(count=count, mean=self.mean + delta * share, squares=squares)

    @property
    def value(self) -> float:
        return math.sqrt(self.squares / self.count) if self.count else math.nan


@record
class Dispersion:
    """Sums of unit vectors, and of how many, by group: the mean of 1 - cos over all pairs of a group's vectors.

    Of K vectors with sum s that is (K^2 - |s|^2) / (K (K - 1)); groups weigh by K, those of one vector not at all.
    """

    sums: Mapping[int, Float[Tensor, " C"]]
    counts: Mapping[int, int]

    def __add__(self, other: Dispersion) -> Dispersion:
        apart = {**self.sums, **other.sums}
        sums = {
            g: self.sums[g] + other.sums[g] if g in self.sums and g in other.sums else apart[g]
            for g in apart
        }
        return Dispersion(sums=sums, counts=Counter(self.counts) + Counter(other.counts))

    @property
    def value(self) -> float:
        pairs = {group: count for group, count in self.counts.items() if count > 1}
        apart = sum(
            (k**2 - float(self.sums[group].square().sum())) / (k - 1) for group, k in pairs.items()
        )
        return apart / sum(pairs.values()) if pairs else math.nan


@record
class Histogram:
    """Counts between shared edges; the outer bins are open."""

    counts: Int[Tensor, " K"]
    edges: Float[Tensor, " K1"]

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(counts=self.counts + other.counts, edges=self.edges)

    @property
    def value(self) -> float:
        return float(self.counts.sum())


def scalar(value: float) -> Mean:
    """A number that all processes agree on."""
    return Mean(sum=value, count=1)


def mean(values: Tensor) -> Mean:
    """The mean of numbers that are not NaN."""
    kept = values[~values.isnan()].double()
    return Mean(sum=float(kept.sum()), count=len(kept))


def std(values: Float[Tensor, " R"]) -> Std:
    """The population standard deviation of numbers, in float64."""
    x = values.double()
    centre = float(x.mean()) if len(x) else 0.0
    return Std(count=len(x), mean=centre, squares=float((x - centre).square().sum()))


def dispersion(vectors: Float[Tensor, "B C"], group: Int[Tensor, " B"]) -> Dispersion:
    """How far vectors point apart within their groups, in float64."""
    unit, labels = torch.nn.functional.normalize(vectors.double(), dim=1).cpu(), group.cpu()
    counts = Counter(labels.tolist())
    return Dispersion(sums={g: unit[labels == g].sum(0) for g in counts}, counts=counts)


def histogram(values: Float[Tensor, " R"], edges: Float[Tensor, " K1"]) -> Histogram:
    """Count values between edges, those beyond them in the outer bins."""
    bins = torch.bucketize(values, edges[1:-1].to(values))
    return Histogram(counts=torch.bincount(bins, minlength=len(edges) - 1).cpu(), edges=edges)


def merge(parts: Iterable[Metrics]) -> dict[str, Metric]:
    """Add metrics of the same key."""

    def add(total: dict[str, Metric], part: Metrics) -> dict[str, Metric]:
        return total | {k: total[k] + m if k in total else m for k, m in part.items()}

    return reduce(add, parts, {})


EDGES = 0.05 * torch.sinh(torch.linspace(-7.6, 7.6, 97, dtype=torch.float64))
"""Histogram edges in units of the clip range: linear near 0, logarithmic out to 50 clip ranges on either side."""


def ratio_metrics(
    replay: Replay, schedule: Schedule, bounds: tuple[Float[Tensor, " T"], Float[Tensor, " T"]]
) -> dict[str, Metric]:
    """Everything logged per trained step: ratios - 1 (`own` is the optimised one), clip decisions by sign of the
    advantage, share of the gradient.

    Histograms are of log-ratios over half the width of their step's clip range, whose upper end is `clip/range`.
    """
    (low, high), reached = bounds, torch.expm1(bounds[1])
    total = float(replay.gradient.double().sum())
    kinds = {
        "raw": log_ratio_raw(replay.drift),
        "norm": log_ratio_norm(replay.drift),
        "own": replay.objective.log_ratio,
    }
    found: dict[str, Metric] = {}
    for step in schedule.trained.nonzero().flatten().tolist():
        at = replay.rows.step == step
        for kind, log_ratio in kinds.items():
            found[f"ratio_{kind}/mean/{step:02d}"] = mean(torch.expm1(log_ratio[at]))
            found[f"ratio_{kind}/std/{step:02d}"] = std(torch.expm1(log_ratio[at]))
            found[f"ratio_{kind}/hist/{step:02d}"] = histogram(
                log_ratio[at] / ((high - low) / 2)[step], EDGES
            )
        found |= {
            f"clip/{name}/{step:02d}": share for name, share in clip_metrics(replay, at).items()
        }
        found[f"clip/range/{step:02d}"] = scalar(float(reached[step]))
        found[f"grad_share/{step:02d}"] = Mean(
            sum=float(replay.gradient[at].double().sum()), count=total
        )
    return found


def clip_metrics(replay: Replay, at: Bool[Tensor, " R"]) -> dict[str, Metric]:
    """Shares of the rows `at` outside the clip range, and of those where the clip acts, by sign of the advantage."""
    high, low, advantage = replay.objective.high, replay.objective.low, replay.rows.advantage
    return {
        "high": mean(high[at].float()),
        "low": mean(low[at].float()),
        "high_pos_adv": mean(high[at & (advantage > 0)].float()),
        "low_neg_adv": mean(low[at & (advantage < 0)].float()),
    }


class Clock:
    """Seconds spent in each named part since it was made."""

    def __init__(self) -> None:
        self.start, self.spent = time.perf_counter(), dict[str, float]()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a part."""
        before = time.perf_counter()
        yield
        self.spent[name] = time.perf_counter() - before

    @property
    def total(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self.start

    def times(self) -> Metrics:
        """`time/<part>`."""
        return {f"time/{name}": scalar(seconds) for name, seconds in self.spent.items()}
