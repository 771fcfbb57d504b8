"""Metrics that carry their own reduction: sums and counts travel, division comes last.

Numbers of several processes are added before they are divided, so they do not depend on how many
processes there are.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grpo_guard.schema import record


@runtime_checkable
class Metric(Protocol):
    """Something that can be added to its like and then read as a number."""

    def __add__(self, other: Any) -> Any: ...

    @property
    def value(self) -> float: ...


def finite_or_none(value: float) -> float | None:
    """Return a number, or None for what JSON has no number for."""
    return value if math.isfinite(value) else None


Metrics = Mapping[str, Metric]
"""Metrics by key, such as "ratio_norm/std/03"."""


@record
class Mean:
    """A mean."""

    sum: float
    """Sum of the numbers."""
    count: float
    """How many numbers, or the sum of their weights."""

    def __add__(self, other: Mean) -> Mean:
        return Mean(sum=self.sum + other.sum, count=self.count + other.count)

    @property
    def value(self) -> float:
        return self.sum / self.count if self.count else math.nan


@record
class Std:
    """A population standard deviation; parts are joined by Chan's formula."""

    count: float
    """How many numbers."""
    mean: float
    """Their mean."""
    squares: float
    """Sum of their squared deviations from the mean."""

    def __add__(self, other: Std) -> Std:
        count = self.count + other.count
        delta = other.mean - self.mean
        share = other.count / count if count else 0.0
        squares = self.squares + other.squares + delta**2 * self.count * share
        return Std(count=count, mean=self.mean + delta * share, squares=squares)

    @property
    def value(self) -> float:
        return math.sqrt(self.squares / self.count) if self.count else math.nan


@record
class Largest:
    """The largest of some numbers."""

    value: float
    """The largest number."""

    def __add__(self, other: Largest) -> Largest:
        return Largest(value=max(self.value, other.value))


@record
class Dispersion:
    """The mean of 1 - cos over all pairs of a group's unit vectors.

    For K vectors with sum s it is (K^2 - |s|^2) / (K (K - 1)), so parts of a group can be added.
    Groups weigh by K; a group of one vector counts nothing (docs/adr/0017).
    """

    sums: Mapping[int, Float[Tensor, " C"]]
    """Sum of the unit vectors, by group."""
    counts: Mapping[int, int]
    """Number of vectors, by group."""

    def __add__(self, other: Dispersion) -> Dispersion:
        sums = dict(self.sums)
        for group, total in other.sums.items():
            sums[group] = sums[group] + total if group in sums else total
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
    """Counts between edges that all runs share; the outer bins are open."""

    counts: Int[Tensor, " K"]
    """Numbers in each bin."""
    edges: Float[Tensor, " K1"]
    """Edges of the bins, ascending."""

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(counts=self.counts + other.counts, edges=self.edges)

    @property
    def value(self) -> float:
        return float(self.counts.sum())


def scalar(value: float) -> Mean:
    """Make a metric of a number that is the same on all processes."""
    return Mean(sum=value, count=1)


def mean(values: Tensor) -> Mean:
    """Take the mean of the numbers that are not NaN, in float64."""
    x = _numbers(values).double()
    return Mean(sum=float(x.sum()), count=len(x))


def std(values: Float[Tensor, " R"]) -> Std:
    """Take the population standard deviation of the numbers that are not NaN, in float64."""
    x = _numbers(values).double()
    centre = float(x.mean()) if len(x) else 0.0
    return Std(count=len(x), mean=centre, squares=float((x - centre).square().sum()))


def _numbers(values: Tensor) -> Tensor:
    """Return the values that are not NaN, on the CPU."""
    values = values.cpu()  # one wait for a GPU instead of one for each number that is read
    return values[~values.isnan()]


def dispersion(vectors: Float[Tensor, "B C"], group: Int[Tensor, " B"]) -> Dispersion:
    """Measure how far vectors point apart within their groups, in float64."""
    unit = torch.nn.functional.normalize(vectors.double(), dim=1).cpu()
    labels = group.cpu()
    counts = Counter(labels.tolist())
    return Dispersion(sums={g: unit[labels == g].sum(0) for g in counts}, counts=counts)


def histogram(values: Float[Tensor, " R"], edges: Float[Tensor, " K1"]) -> Histogram:
    """Count values between edges; those beyond fall into the outer bins, and NaN into none."""
    numbers = _numbers(values)
    bins = torch.bucketize(numbers, edges[1:-1].to(numbers))
    return Histogram(counts=torch.bincount(bins, minlength=len(edges) - 1), edges=edges)


def merge(parts: Iterable[Metrics]) -> dict[str, Metric]:
    """Add the metrics that share a key."""
    total: dict[str, Metric] = {}
    for part in parts:
        for key, metric in part.items():
            total[key] = total[key] + metric if key in total else metric
    return total


class Clock:
    """Seconds since it was made, and seconds spent in named parts."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.seconds = dict[str, float]()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a part."""
        before = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - before

    @property
    def total(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self.start

    def times(self) -> Metrics:
        """Return the seconds of each part as `time/<part>`."""
        return {f"time/{name}": scalar(seconds) for name, seconds in self.seconds.items()}
