"""What training changed in every arm, and how two arms differ: intervals and verdicts."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from grpo_guard.lifecycle.immaterial import flatten_settings
from grpo_guard.report import curves, statistics
from grpo_guard.report.arms import Arm
from grpo_guard.report.curves import PROXY, Curve, CurveOf
from grpo_guard.report.runs import Run
from grpo_guard.report.settling import Settled
from grpo_guard.report.statistics import DifferenceVerdict, Interval, Peak, Verdict
from grpo_guard.schema import record

MARGIN = 0.05
"""Difference of a gold in [0, 1] that matters; of another gold, a share of its first value."""
SELECTOR = "pickscore_gold"
"""Gold that chooses where to stop early; it must not be the one that is then reported."""
AREA_RESAMPLES = 60  # of the prompts, because an area is slow to calculate

Resampled = tuple[Float[ndarray, "P N"], bool]
"""A curve with resamples of its prompts, and whether other runs share these prompts."""
_resampled: WeakKeyDictionary[Run, dict[tuple[CurveOf, bytes], Resampled]] = WeakKeyDictionary()


@record
class ArmChange:
    """What an arm gained and lost by training, up to the last common evaluation."""

    arm: Arm
    """The arm."""
    proxy: Interval
    """Change of the proxy."""
    golds: Mapping[str, Interval]
    """Change of every gold."""
    peaks: Mapping[str, Peak]
    """Where every gold is highest."""
    stops: Mapping[str, Interval]
    """Change of a gold if every run stops where `SELECTOR` is highest."""
    over_optimises: Verdict
    """Whether the first gold falls while the proxy rises. It is never `NO_DIFFERENCE`: the claim
    is about two changes, and is refuted as soon as the gold is known not to fall by the margin."""


@record
class Difference:
    """How much higher a gold of one arm is than that of the reference."""

    at_end: Interval
    """At the last common evaluation: after equal images, if both arms have as many an iteration."""
    over_images: Interval
    """On average over all images."""
    at_proxy: Interval
    """At equal proxy, on average over the proxies that both runs of a pair passed."""
    at_distance: Interval
    """At equal distance from the base model, sqrt(eval/kl)."""
    verdict: DifferenceVerdict
    """Whether the gold is higher at the last common evaluation."""
    seeds_needed: int | None
    """Seeds that would decide in all, if it is undecided and this can be estimated."""


@record
class Comparison:
    """Two arms of a set."""

    reference: Arm
    """The arm that is compared with."""
    other: Arm
    """The arm that is compared."""
    pairs: int
    """Number of pairs of runs."""
    golds: Mapping[str, Difference]
    """The differences of every gold."""


def replicate(
    arm: Arm, curve_of: CurveOf, iterations: Int[ndarray, " N"]
) -> tuple[Float[ndarray, "S P N"], bool]:
    """Return a curve of every run with resamples of its prompts; and whether prompts are shared.

    They are as soon as one run has the scores of its prompts: the others add noise of their own.
    """
    parts = [_resample(run, curve_of, iterations) for run in arm.runs]
    return np.stack([drawn for drawn, _ in parts]), any(shared for _, shared in parts)


def _resample(run: Run, curve_of: CurveOf, iterations: Int[ndarray, " N"]) -> Resampled:
    """Return a curve of a run with resamples.

    They are remembered as long as the run is, because every comparison needs them.
    """
    known = _resampled.setdefault(run, {})
    key = (curve_of, iterations.tobytes())
    if key not in known:
        curve = curve_of(run).at(iterations)
        seed = _noise_seed(run, curve.name)
        drawn = statistics.resample_prompts(curve.value, curve.error, curve.by_prompt, seed)
        known[key] = (drawn, curve.by_prompt is not None)
    return known[key]


def _noise_seed(run: Run, score: str) -> int:
    """Return a seed for the noise of a run's score that no other run or score shares.

    It depends on the two alone, so that intervals are the same whatever a run is compared with.
    """
    settings = repr(sorted(flatten_settings(run.config).items()))
    return zlib.crc32(f"{score} {settings}".encode())


def measure_change(arm: Arm, settled: Settled) -> ArmChange | None:
    """Measure an arm; None with fewer than two common evaluations."""
    if len(settled.iterations) < 2:
        return None
    changes: dict[str, Interval] = {}
    peaks: dict[str, Peak] = {}
    stops: dict[str, Interval] = {}
    for name in (PROXY, *settled.golds):
        values, shared = _replicate_score(arm, name, settled)
        changes[name] = statistics.estimate(values[:, :, -1] - values[:, :, 0], same_prompts=shared)
        if name == PROXY:
            continue
        peaks[name] = statistics.find_peak(values, same_prompts=shared)
        if SELECTOR in settled.golds and name != SELECTOR:
            stops[name] = _stop_early(arm, values, settled, same_prompts=shared)
    proxy = changes.pop(PROXY)
    return ArmChange(
        arm=arm,
        proxy=proxy,
        golds=changes,
        peaks=peaks,
        stops=stops,
        over_optimises=_judge_over_optimisation(arm, proxy, changes),
    )


def _replicate_score(arm: Arm, name: str, settled: Settled) -> tuple[Float[ndarray, "S P N"], bool]:
    return replicate(arm, curves.score_of(name), settled.iterations)


def _stop_early(
    arm: Arm, values: Float[ndarray, "S P N"], settled: Settled, *, same_prompts: bool
) -> Interval:
    """Return the change of a gold where `SELECTOR` of each run is highest."""
    chosen = _replicate_score(arm, SELECTOR, settled)[0][:, 0].argmax(1)
    at_stop = values[np.arange(len(values)), :, chosen]
    return statistics.estimate(at_stop - values[:, :, 0], same_prompts=same_prompts)


def _judge_over_optimisation(arm: Arm, proxy: Interval, golds: Mapping[str, Interval]) -> Verdict:
    """Judge whether the proxy rises while the first gold falls."""
    if not golds or len(arm.runs) < statistics.MIN_SEEDS:
        return "undecided"
    name, gold = next(iter(golds.items()))
    if proxy.low > 0 and gold.high < 0:
        return "shows"
    is_refuted = proxy.high <= 0 or gold.low > -margin_of(name, arm.runs)
    return "does not show" if is_refuted else "undecided"


def compare_arms(reference: Arm, other: Arm, settled: Settled) -> Comparison | None:
    """Compare two arms on pairs of runs; None with fewer than two common evaluations."""
    if len(settled.iterations) < 2:
        return None
    pairs = statistics.pair_seeds(reference.seeds, other.seeds)
    first = replace(reference, runs=tuple(reference.runs[i] for i, _ in pairs))
    second = replace(other, runs=tuple(other.runs[i] for _, i in pairs))
    return Comparison(
        reference=reference,
        other=other,
        pairs=len(pairs),
        golds={name: _compare_gold(first, second, name, settled) for name in settled.golds},
    )


def _compare_gold(first: Arm, second: Arm, name: str, settled: Settled) -> Difference:
    before, shared = _replicate_score(first, name, settled)
    after, also_shared = _replicate_score(second, name, settled)
    same_prompts = shared or also_shared
    at_end = statistics.estimate((after - before)[:, :, -1], same_prompts=same_prompts)
    margin = margin_of(name, (*first.runs, *second.runs))
    verdict = statistics.judge(at_end, margin, len(first.runs))
    return Difference(
        at_end=at_end,
        over_images=_area(first, second, name, settled, images_at),
        at_proxy=_area(first, second, name, settled, curves.proxy_curve),
        at_distance=_area(first, second, name, settled, distance_at),
        verdict=verdict,
        seeds_needed=statistics.seeds_to_decide(at_end, len(first.runs), margin)
        if verdict == "undecided"
        else None,
    )


def _area(first: Arm, second: Arm, name: str, settled: Settled, x_of: CurveOf) -> Interval:
    """Return the mean height of the second arm's gold over the first's, along some x."""
    count = AREA_RESAMPLES
    (y_first, shared), (y_second, also_shared) = (
        _replicate_score(arm, name, settled) for arm in (first, second)
    )
    if not all(_has_curve(run, x_of, settled) for arm in (first, second) for run in arm.runs):
        return Interval(value=np.nan, low=np.nan, high=np.nan)
    x_first, x_second = (replicate(arm, x_of, settled.iterations)[0] for arm in (first, second))
    heights = [
        [
            statistics.area_between(x_a[p], y_a[p], x_b[p], y_b[p])
            for p in range(min(count, len(y_a)))
        ]
        for x_a, y_a, x_b, y_b in zip(x_first, y_first, x_second, y_second, strict=True)
    ]
    return statistics.estimate(np.array(heights), same_prompts=shared or also_shared)


def _has_curve(run: Run, curve_of: CurveOf, settled: Settled) -> bool:
    return bool(np.isin(settled.iterations, curve_of(run).iteration).all())


def distance_at(run: Run) -> Curve:
    """Return the root of the distance from the base model along a run."""
    iteration, kl = run.series("eval/kl")
    value = np.sqrt(np.maximum(kl, 0))
    return Curve(iteration=iteration, value=value, error=np.zeros(len(value)))


def images_at(run: Run) -> Curve:
    """Return the images that a run had generated before each evaluation."""
    iteration = curves.proxy_curve(run).iteration
    value = progress_at(run, "images", iteration)
    return Curve(iteration=iteration, value=value, error=np.zeros(len(value)))


def progress_at(run: Run, unit: str, iteration: Int[ndarray, " N"]) -> Float[ndarray, " N"]:
    """Return the images or the hours that a run had spent before each of these iterations."""
    ends, spent = run.spent[unit]
    return np.asarray(np.interp(iteration, ends, spent))


def margin_of(name: str, runs: Sequence[Run]) -> float:
    """Return the difference of a gold that matters."""
    values = np.concatenate([curves.gold_curve(run, name).value for run in runs])
    within = len(values) > 0 and values.min() >= 0 and values.max() <= 1
    return MARGIN if within else MARGIN * float(np.abs(values[:1]).sum())
