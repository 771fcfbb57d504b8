"""Statistics of over-optimization curves: intervals over seeds and prompts, areas, peaks, verdicts.

The functions take plain arrays, so that a study can use them without the page.

S counts seeds, P resamples of the prompts, N evaluations, R resamples of the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, reduce
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.special import ndtri, stdtrit

from grpo_guard.schema import record

LEVEL = 0.95
"""Probability that an interval covers."""
_TAIL = (1 + LEVEL) / 2
HALF_WIDTH = 1.96
"""Standard errors in half such an interval of a mean over many rows."""
SEED_RESAMPLES = 2000
PROMPT_RESAMPLES = 200

MIN_SEEDS = 3
"""Seeds below which nothing is decided: fewer do not tell how much seeds differ."""
MOST_SEEDS = 1000
"""Seeds that anybody might train to decide a question."""

Verdict = Literal["shows", "does not show", "undecided"]
"""What the interval of a claim says of it."""
NO_DIFFERENCE: Literal["no difference that matters"] = "no difference that matters"
"""Verdict on a difference that is known to be smaller than the margin, in either direction."""
DifferenceVerdict = Verdict | Literal["no difference that matters"]


@record
class Interval:
    """A number and its 95 % interval; the ends are NaN if the interval is not known."""

    value: float
    """The number."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""
    seeds: int | None = None
    """Seeds that have the number; some may lack it, such as pairs that never had equal proxies."""
    prompt_half_width: float = 0.0
    """Half the length that any number of seeds would leave, because all have the same prompts."""

    @property
    def half_width(self) -> float:
        """Half the length of the interval."""
        return (self.high - self.low) / 2

    def __neg__(self) -> Interval:
        """Return the interval of the number with the other sign."""
        return replace(self, value=-self.value, low=-self.high, high=-self.low)


@record
class Peak:
    """Where a curve is highest, and what it loses from there to its end."""

    index: int
    """The evaluation, counted from 0."""
    gain: Interval
    """Its value minus the value before training."""
    loss: Interval
    """The last value minus the highest one."""


def resample_prompts(
    value: Float[ndarray, " N"],
    error: Float[ndarray, " N"],
    by_prompt: Float[ndarray, "N Q"] | None,
    seed: int,
) -> Float[ndarray, "P N"]:
    """Return the curve as it is, followed by resamples of its prompts.

    With the scores of each prompt, prompts are drawn with replacement; the same ones for every
    curve, because all runs are evaluated on the same prompts. Without them, every value gets normal
    noise of its standard error, which depends on `seed`; a NaN adds none.
    """
    if by_prompt is not None:
        times_drawn = _draw_prompts(by_prompt.shape[1])
        is_scored = np.isfinite(by_prompt)
        total = times_drawn @ np.where(is_scored, by_prompt, 0).T
        # Without scores of the drawn prompts there is no mean: 0 / NaN.
        count = by_prompt.shape[1] if is_scored.all() else times_drawn @ is_scored.T.astype(float)
        drawn = total / np.where(count > 0, count, np.nan)
    else:
        noise = np.random.default_rng(seed).standard_normal((PROMPT_RESAMPLES, len(value)))
        drawn = value + noise * np.nan_to_num(error)
    return np.concatenate([value[None], drawn])


@cache
def _draw_prompts(count: int) -> Float[ndarray, "P Q"]:
    """Return how many times each resample holds each of so many prompts."""
    picks = np.random.default_rng(0).integers(0, count, (PROMPT_RESAMPLES, count))
    return np.stack([np.bincount(pick, minlength=count) for pick in picks]).astype(float)


def bootstrap_mean(
    replicates: Float[ndarray, "S P N"], *, same_prompts: bool
) -> tuple[Float[ndarray, " N"], Float[ndarray, " N"], Float[ndarray, " N"]]:
    """Return the mean over seeds and the ends of its 95 % interval.

    Seeds are drawn with replacement and, within them, resamples of the prompts: the same one for
    all seeds with `same_prompts`, else one for each. The first replicate of a seed is the original.
    How far seeds lie from their mean is stretched by `stretch_of_few`.
    The ends are NaN if there is one seed and its resamples do not differ.
    """
    seeds, resamples, _ = replicates.shape
    originals = replicates[:, :1]
    replicates = replicates + (stretch_of_few(seeds) - 1) * (originals - originals.mean(0))
    random = np.random.default_rng(0)
    seed = random.integers(0, seeds, (SEED_RESAMPLES, seeds))
    shape = (SEED_RESAMPLES, 1 if same_prompts else seeds)
    prompts = random.integers(1, resamples, shape) if resamples > 1 else np.zeros(shape, dtype=int)
    means = replicates[seed, np.broadcast_to(prompts, seed.shape)].mean(1)
    low, high = np.quantile(means, [1 - _TAIL, _TAIL], axis=0)
    unknown = (seeds == 1) & (low == high)
    return originals[:, 0].mean(0), np.where(unknown, np.nan, low), np.where(unknown, np.nan, high)


def stretch_of_few(seeds: int) -> float:
    """Return the factor by which a bootstrap over so few seeds is too narrow.

    Drawing from S seeds makes means that spread like the normal distribution with a variance that
    is too small by (S - 1) / S, where Student's distribution is needed. Without the factor, an
    interval over 3 normal seeds covers their mean 75 % of the time, and with it 95 %.
    """
    if seeds < 2:
        return 1.0
    return float(_student(seeds) / ndtri(_TAIL) * math.sqrt(seeds / (seeds - 1)))


def _student(seeds: int | Int[ndarray, " M"]) -> Any:
    """Return how many standard errors an interval over some seeds reaches to either side."""
    return stdtrit(seeds - 1, _TAIL)


def estimate(replicates: Float[ndarray, "S P"], *, same_prompts: bool) -> Interval:
    """Return the mean over seeds of a single number, with its interval.

    Seeds for which the number does not exist (NaN) are left out. Where it does not exist in a
    resample alone, the seed's original stands for it.
    """
    known = replicates[np.isfinite(replicates[:, 0])]
    if not len(known):
        return Interval(value=math.nan, low=math.nan, high=math.nan, seeds=0)
    filled = np.where(np.isfinite(known), known, known[:, :1])
    value, low, high = bootstrap_mean(filled[:, :, None], same_prompts=same_prompts)
    return Interval(
        value=float(value[0]),
        low=float(low[0]),
        high=float(high[0]),
        seeds=len(known),
        prompt_half_width=_half_width_of_prompts(filled) if same_prompts else 0.0,
    )


def _half_width_of_prompts(replicates: Float[ndarray, "S P"]) -> float:
    """Return half the interval of the prompts alone, if all seeds have the same.

    What two seeds have in common over resamples is their covariance: the variance of the mean over
    S seeds is that plus a part of each seed's own, which shrinks with S. 0 for one seed, which does
    not tell the two apart.
    """
    seeds, resamples = replicates.shape
    if seeds < 2 or resamples < 3:
        return 0.0
    of_mean = replicates[:, 1:].mean(0).var(ddof=1)
    own = replicates[:, 1:].var(1, ddof=1).mean()
    common = (seeds * of_mean - own) / (seeds - 1)
    return float(ndtri(_TAIL) * math.sqrt(max(common, 0.0)))


def area_between(
    x_reference: Float[ndarray, " N"],
    y_reference: Float[ndarray, " N"],
    x_other: Float[ndarray, " M"],
    y_other: Float[ndarray, " M"],
    points: int = 50,
) -> float:
    """Return the mean height of one curve over another, on the range of x that both passed.

    It is the area between them divided by the length of that range, so its unit is that of y. Each
    curve is sorted by x and interpolated on straight lines. NaN if the ranges do not overlap.
    """
    low = max(x_reference.min(initial=np.inf), x_other.min(initial=np.inf))
    high = min(x_reference.max(initial=-np.inf), x_other.max(initial=-np.inf))
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        return math.nan
    grid = np.linspace(low, high, points)
    heights = [
        np.interp(grid, x[order], y[order])
        for x, y in ((x_reference, y_reference), (x_other, y_other))
        for order in [np.argsort(x, kind="stable")]
    ]
    return float(np.trapezoid(heights[1] - heights[0], grid) / (high - low))


def find_peak(replicates: Float[ndarray, "S P N"], *, same_prompts: bool) -> Peak:
    """Return the highest point of the mean curve over seeds.

    The highest of several noisy values lies above what it measures, so `gain` is optimistic.
    """
    index = int(replicates[:, 0].mean(0).argmax())
    from_start = replicates[:, :, index] - replicates[:, :, 0]
    to_end = replicates[:, :, -1] - replicates[:, :, index]
    return Peak(
        index=index,
        gain=estimate(from_start, same_prompts=same_prompts),
        loss=estimate(to_end, same_prompts=same_prompts),
    )


def judge(difference: Interval, margin: float, seeds: int) -> DifferenceVerdict:
    """Judge whether a difference is positive, by its interval.

    It is undecided if the interval holds both 0 and the margin that matters, or is not known, and
    with fewer than `MIN_SEEDS` of the `seeds` in the interval. An interval above 0 shows, however
    small the difference is. Any other one within the margin on both sides is `NO_DIFFERENCE`, and
    one that reaches below it does not show.
    """
    if _seeds_of(difference, seeds) < MIN_SEEDS:
        return "undecided"
    if difference.low > 0:
        return "shows"
    if difference.high < margin:
        return NO_DIFFERENCE if difference.low > -margin else "does not show"
    return "undecided"


def seeds_to_decide(difference: Interval, seeds: int, margin: float) -> int | None:
    """Return how many seeds in all would decide, if the estimate stays where it is.

    The part of an interval that comes from the seeds shrinks with the root of their number, and
    with Student's distribution; the part that comes from prompts that all seeds share stays. The
    interval decides as soon as it leaves out 0 or the margin, and there are `MIN_SEEDS`. None if
    the interval is not known, or if more than `MOST_SEEDS` would be needed, as when the prompts
    alone make it too wide. The interval of one seed tells neither how much seeds differ nor what
    they share: the result is a minimum.
    """
    seeds = _seeds_of(difference, seeds)
    reach = max(abs(difference.value), abs(margin - difference.value))
    if not difference.half_width > 0:
        return None
    more = np.arange(max(MIN_SEEDS, seeds + 1), MOST_SEEDS + 1)
    now = _student(seeds) / math.sqrt(seeds) if seeds > 1 else ndtri(_TAIL)
    later = (_student(more) if seeds > 1 else ndtri(_TAIL)) / np.sqrt(more)
    lasting = difference.prompt_half_width
    of_seeds = math.sqrt(max(difference.half_width**2 - lasting**2, 0.0))
    enough = more[np.hypot(lasting, of_seeds * later / now) <= reach]
    return int(enough[0]) if len(enough) else None


def _seeds_of(interval: Interval, seeds: int) -> int:
    """Return how many of some seeds are in an interval."""
    return seeds if interval.seeds is None else interval.seeds


def pair_seeds(reference: Sequence[int], other: Sequence[int]) -> list[tuple[int, int]]:
    """Return the positions of runs with equal seeds.

    They are paired in order if the two share no seed, or if a seed that one of them repeats does
    not tell its runs apart.
    """
    places = {seed: index for index, seed in enumerate(other)}
    if len(places) < len(other) or len(set(reference)) < len(reference):
        places = {}
    pairs = [(index, places[seed]) for index, seed in enumerate(reference) if seed in places]
    return pairs or list(zip(range(len(reference)), range(len(other)), strict=False))


def common_iterations(iterations: Sequence[Int[ndarray, " _"]]) -> Int[ndarray, " M"]:
    """Return the iterations that all curves have; none without curves."""
    return reduce(np.intersect1d, iterations) if iterations else np.empty(0, dtype=int)
