"""Compares the numbers that an iteration logged with those that follow from what it kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grpo_guard.command.verification.advantages import compute_advantages
from grpo_guard.command.verification.equations import (
    RATIOS,
    SCALES,
    Losses,
    Moved,
    apply_objective,
    configure_limits,
    find_learning,
    measure_gradients,
    measure_move,
    penalize,
    scale_of,
)
from grpo_guard.command.verification.kept import Booleans, Kept, Numbers
from grpo_guard.command.verification.settings import last_name
from grpo_guard.command.verification.steps import compute_gains, draw_noise
from grpo_guard.schema import record

PRECISION = 1e-6
"""How far a number may be from the one computed here, relative to its size, or to 1 if less."""
START = -1
"""The step in the address of a sample's first noise."""


@record
class Comparison:
    """A number that the run logged or used, and the one computed here."""

    part: str
    """What kind of number it is."""
    key: str
    """Its key in metrics.jsonl, or what it is."""
    logged: float
    """The run's number; NaN: it has none."""
    computed: float
    """The number computed here; NaN: there is none."""
    allowed: float
    """Largest difference that rounding explains."""

    @property
    def difference(self) -> float:
        """How far they are apart; infinite if only one of them exists."""
        if np.isnan(self.logged) and np.isnan(self.computed):
            return 0.0
        apart = abs(self.logged - self.computed)
        return float("inf") if np.isnan(apart) else float(apart)

    @property
    def strain(self) -> float:
        """The difference as a share of what is allowed."""
        if self.difference == 0:
            return 0.0
        return float(self.difference / self.allowed) if self.allowed else float("inf")

    @property
    def agrees(self) -> bool:
        """Whether rounding explains the difference."""
        return bool(self.strain <= 1)


def compare(kept: Kept) -> list[Comparison]:
    """Compute everything again; raises ConfigError for a part of a run that is not known here."""
    # float32 rounds latents by 1e-7 or so. The mean over D dimensions is more exact by sqrt(D).
    rounding = PRECISION / np.sqrt(kept.dimensions)
    # Rows whose mean is not finite have no ratio and no loss, here as in the run.
    with np.errstate(over="ignore", invalid="ignore"):
        moved = measure_move(kept)
        losses = apply_objective(kept, moved, rounding)
        return [
            *compare_progress(kept),
            *compare_samples(kept),
            *compare_rewards(kept),
            *compare_advantages(kept),
            *compare_ratios(kept, moved, rounding),
            *compare_clips(kept, losses),
            *compare_losses(kept, moved, losses, rounding),
            *compare_gradients(kept, moved, losses),
        ]


def check(kept: Kept, part: str, key: str, computed: float, allowed: float) -> Comparison:
    """Compare a logged number. A run logs only finite ones, so NaN stands for any other."""
    logged = kept.logged.get(key, np.nan)
    number = float(computed) if np.isfinite(computed) else np.nan
    return Comparison(part=part, key=key, logged=logged, computed=number, allowed=allowed)


def near(value: float, scale: float = 1.0) -> float:
    """Return the difference that is allowed for a number of this size."""
    return PRECISION * max(scale, abs(float(np.nan_to_num(value))))


def compare_progress(kept: Kept) -> Iterator[Comparison]:
    """Count images and updates."""
    done = kept.iteration + 1
    samples = len(kept.rewards.total)
    for key, number in (("images", samples), ("update", kept.config["updates"])):
        yield check(kept, "progress", key, done * number, 0.0)


def compare_samples(kept: Kept) -> Iterator[Comparison]:
    """Compare steps with their equations, and latents with the noise at their addresses."""
    for name, gains in compute_gains(kept).items():
        own = kept.schedule[name]
        # Times are stored in float32, in which 1 - t loses digits next to noise.
        yield _compare_all("steps", name, own, gains, 1e-5 * max(1.0, float(np.abs(gains).max())))
    rows = kept.rows
    if kept.device == "cpu":
        order = np.arange(len(kept.start))
        first = draw_noise(kept, order, np.full_like(order, START))
        yield _compare_all("noise", "first latents", kept.start, first, 0.0)
        drawn = draw_noise(kept, rows.sample, rows.step)
        yield _compare_all("noise", "noise of steps", rows.noise, drawn, 0.0)
    if kept.config["backbone"].get("dtype", "float32") == "float32":
        # Before the first update, the policy is the one that sampled.
        same = (rows.update == 0) & np.isfinite(rows.mean).all(1)
        s = kept.schedule["std"][rows.step][same, None]
        expected = rows.mean[same] + s * rows.noise[same]
        size = max(1.0, largest(expected))
        allowed = PRECISION * size
        yield _compare_all("samples", "x_next = mu + s eps", rows.x_next[same], expected, allowed)


def _compare_all(
    part: str,
    key: str,
    used: NDArray[np.floating[Any]],
    computed: NDArray[np.floating[Any]],
    allowed: float,
) -> Comparison:
    """Compare arrays by the place where they differ most; NaN equals NaN alone."""
    flat, expected = used.reshape(-1), computed.reshape(-1)
    if flat.shape != expected.shape:
        return Comparison(part=part, key=key, logged=np.nan, computed=len(expected), allowed=0.0)
    if not flat.size:
        return Comparison(part=part, key=key, logged=np.nan, computed=np.nan, allowed=0.0)
    both_nan = np.isnan(flat) & np.isnan(expected)
    apart = np.where(both_nan, 0.0, np.nan_to_num(np.abs(flat - expected), nan=np.inf))
    worst = int(apart.argmax())
    return Comparison(
        part=part, key=key, logged=flat[worst], computed=expected[worst], allowed=allowed
    )


def compare_rewards(kept: Kept) -> Iterator[Comparison]:
    """Compare totals with their parts, and what is logged of the scores."""
    rewards = kept.rewards
    counted = {name: weight for name, weight in rewards.weights.items() if weight}
    total = sum(weight * rewards.parts[name] for name, weight in counted.items())
    size = sum(abs(weight) * np.abs(rewards.parts[name]) for name, weight in counted.items())
    intact = ~rewards.failed
    allowed = near(float(np.max(np.asarray(size)[intact], initial=1.0)))
    own = np.where(intact, rewards.total, 0.0)
    expected = np.where(intact, np.asarray(total), 0.0)
    yield _compare_all("rewards", "totals", own, expected, allowed)
    missing = ~np.all([np.isfinite(rewards.parts[name]) for name in counted], axis=0)
    yield _compare_all("rewards", "failed", 1.0 * rewards.failed, 1.0 * missing, 0.0)
    numbers = {f"reward/{name}": mean(part) for name, part in rewards.parts.items()}
    numbers |= {
        f"reward/failed/{name}": mean(1.0 - np.isfinite(rewards.parts[name]))
        for name in rewards.weights
    }
    numbers["reward/total"] = mean(rewards.total)
    numbers["reward/failed"] = mean(1.0 * rewards.failed)
    groups = [rewards.total[(rewards.group == g) & intact] for g in np.unique(rewards.group)]
    numbers["reward/group_std"] = mean(np.array([g.std() for g in groups if len(g)]))
    constant = [len(g) == 0 or g.max() == g.min() for g in groups]
    numbers["advantage/zero_std_groups"] = mean(1.0 * np.array(constant))
    for key, value in numbers.items():
        yield check(kept, "rewards", key, value, near(value))


def compare_advantages(kept: Kept) -> Iterator[Comparison]:
    """Compare the advantages that the rows used; a shuffle keeps those of each group."""
    used: dict[int, float] = {}
    rows = kept.rows
    for sample, advantage in zip(rows.sample.tolist(), rows.advantage.tolist(), strict=True):
        used[sample] = advantage
    shuffled = last_name(kept.config["advantage"]) == "Shuffled"
    for group, expected in compute_advantages(kept).items():
        members = np.flatnonzero(kept.rewards.group == group).tolist()
        own = np.array([used.get(sample, np.nan) for sample in members])
        if shuffled:
            own, expected = np.sort(own), np.sort(expected)
        yield _compare_all("advantages", f"of group {group}", own, expected, PRECISION)
    every = np.array([used[sample] for sample in rows.sample.tolist()])
    yield _compare_all("advantages", "one per sample", rows.advantage, every, 0.0)


def off_policy(kept: Kept) -> Booleans:
    """Return the rows that are measured: those after the first update, if there are more."""
    measured: Booleans = kept.rows.update >= min(1, kept.rows.update.max())
    return measured


def by_step(kept: Kept) -> Mapping[int, Booleans]:
    """Return the measured rows of each trained step."""
    steps = np.flatnonzero(kept.schedule["trained"]).tolist()
    measured = off_policy(kept)
    return {step: measured & (kept.rows.step == step) for step in steps}


def compare_ratios(kept: Kept, moved: Moved, rounding: float) -> Iterator[Comparison]:
    """Compare mean and spread of the ratios of each step, and the clip range."""
    own = last_name(kept.config["clipping"]["ratio"])
    kinds = {"raw": "log_ratio_raw", "norm": "log_ratio_norm", "own": own}
    configured = configure_limits(kept)
    for step, at in by_step(kept).items():
        for kind, name in kinds.items():
            ratio = np.exp(RATIOS[name](moved)[at]) - 1
            allowed = rounding * largest(SCALES[name](moved)[at])
            for key, value in (("mean", mean(ratio)), ("std", mean_std(ratio))):
                size = allowed + PRECISION * largest(ratio)
                yield check(kept, "ratios", f"ratio_{kind}/{key}/{step:02d}", value, size)
        upper = np.exp(kept.high[step]) - 1
        yield check(kept, "clip range", f"clip/range/{step:02d}", upper, PRECISION * upper)
        if configured is not None:
            for key, limits, value in zip(
                ("low", "high"), (kept.low, kept.high), configured, strict=True
            ):
                yield Comparison(
                    part="clip range",
                    key=f"{key} of step {step:02d}",
                    logged=float(limits[step]),
                    computed=value,
                    allowed=PRECISION * abs(value),
                )


def compare_clips(kept: Kept, losses: Losses) -> Iterator[Comparison]:
    """Compare shares of rows outside the clip range; rows within rounding of it may be either."""
    advantage = kept.rows.advantage
    anyone = np.ones_like(losses.high)
    kinds = {
        "high": (losses.high, anyone),
        "low": (losses.low, anyone),
        "high_pos_adv": (losses.high, advantage > 0),
        "low_neg_adv": (losses.low, advantage < 0),
    }
    for step, at in by_step(kept).items():
        for kind, (outside, counted) in kinds.items():
            rows = at & counted
            open_rows = mean(1.0 * (losses.margin[rows] < 1))
            allowed = PRECISION + float(np.nan_to_num(open_rows))
            key = f"clip/{kind}/{step:02d}"
            yield check(kept, "clip fractions", key, mean(1.0 * outside[rows]), allowed)


def compare_losses(
    kept: Kept, moved: Moved, losses: Losses, rounding: float
) -> Iterator[Comparison]:
    """Compare the mean loss of all rows, and the mean penalty."""
    error = np.abs(losses.slope) * rounding * scale_of(kept, moved)
    undecided = (losses.margin < 1) & (last_name(kept.config["clipping"]) == "Dppo")
    allowed = mean(error + PRECISION * np.abs(losses.loss)) + mean(undecided * np.abs(losses.loss))
    yield check(kept, "losses", "loss/policy", mean(losses.loss), allowed)
    penalty, _ = penalize(kept, moved)
    yield check(kept, "losses", "loss/kl", mean(penalty), PRECISION * mean(penalty))


def compare_gradients(kept: Kept, moved: Moved, losses: Losses) -> Iterator[Comparison]:
    """Compare each step's share of the gradient by the velocity."""
    _, pull = penalize(kept, moved)
    gradient = np.where(find_learning(kept), measure_gradients(kept, moved, losses, pull), 0.0)
    whole = gradient[off_policy(kept)].sum()
    likely = largest(gradient) * (losses.margin < 1)
    for step, at in by_step(kept).items():
        share = gradient[at].sum() / whole if whole else np.nan
        allowed = PRECISION + float(likely[off_policy(kept)].sum() / whole if whole else 0.0)
        yield check(kept, "gradient shares", f"grad_share/{step:02d}", share, allowed)


def mean(values: NDArray[np.floating[Any]] | Booleans) -> float:
    """Return the mean of the numbers that are not NaN; NaN if there is none."""
    numbers = values.astype(np.float64)
    kept = numbers[~np.isnan(numbers)]
    return float(kept.mean()) if len(kept) else float("nan")


def mean_std(values: Numbers) -> float:
    """Return the population standard deviation of those that are not NaN; NaN if there is none."""
    kept = values[~np.isnan(values)]
    return float(kept.std()) if len(kept) else float("nan")


def largest(values: Numbers) -> float:
    """Return the largest absolute value of the finite numbers; 0 if there is none."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
