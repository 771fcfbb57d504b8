"""Ratios, objectives, penalties and their gradients in float64, by the papers' symbols.

x are latents, mu means, s a step's whole standard deviation, eps its noise, D latent dimensions, R
rows. Every reduction over dimensions is a mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from grpo_guard.command.verification.kept import Booleans, Kept, Numbers
from grpo_guard.command.verification.settings import choose, last_name
from grpo_guard.schema import ConfigError, record

REFERENCE_DIMENSIONS = 65_536
"""Latent dimensions at which clip ranges are configured."""
LOWEST = 0.01
"""Least lower end of a clip range after scaling."""


@record
class Moved:
    """How far the policy had moved on each row, and what the row's step is like."""

    eps: Numbers
    """(x_next - mu_old) / s: (R, D)."""
    d: Numbers
    """mu_new - mu_old: (R, D)."""
    s: Numbers
    """Standard deviation of the step: (R,). So are the others."""
    gain: Numbers
    """|d mu / d v|."""
    raw: Numbers
    """log N(x_next; mu_new, s) - log N(x_next; mu_old, s), over D."""
    bias: Numbers
    """mean(d^2) / 2 s^2: what the raw log-ratio is too small by, on average."""
    microbatch_bias: Numbers
    """Mean of `bias` over the rows of the same microbatch."""


def measure_move(kept: Kept) -> Moved:
    """Compare new and old means; the old policy is the one that sampled unless means were kept."""
    rows = kept.rows
    s = kept.schedule["std"][rows.step]
    if rows.old_mean is None:
        eps = rows.noise
        d = rows.mean + s[:, None] * eps - rows.x_next
    else:
        eps = (rows.x_next - rows.old_mean) / s[:, None]
        d = rows.mean - rows.old_mean
    # The difference of two logarithms of densities; float64 has the digits for it.
    far = ((s[:, None] * eps) ** 2 - (s[:, None] * eps - d) ** 2).mean(1)
    bias = (d**2).mean(1) / (2 * s**2)
    count = np.bincount(rows.microbatch)
    shared = np.bincount(rows.microbatch, weights=bias) / count
    return Moved(
        eps=eps,
        d=d,
        s=s,
        gain=np.abs(kept.schedule["v_gain"][rows.step]),
        raw=far / (2 * s**2),
        bias=bias,
        microbatch_bias=shared[rows.microbatch],
    )


RATIOS: Mapping[str, Callable[[Moved], Numbers]] = {
    "log_ratio_raw": lambda m: m.raw,
    "log_ratio_mean": lambda m: m.raw + m.bias,
    "log_ratio_norm": lambda m: m.s * (m.raw + m.bias),
    "log_ratio_norm_batch": lambda m: m.s * (m.raw + m.microbatch_bias),
    "log_ratio_velocity": lambda m: m.s * (m.raw + m.bias) / m.gain,
}
"""Log-ratio of each row, by the function that the settings name."""
SCALES: Mapping[str, Callable[[Moved], Numbers]] = {
    "log_ratio_raw": lambda m: 1 / m.s,
    "log_ratio_mean": lambda m: 1 / m.s,
    "log_ratio_norm": lambda m: np.ones_like(m.s),
    "log_ratio_norm_batch": lambda m: np.ones_like(m.s),
    "log_ratio_velocity": lambda m: 1 / m.gain,
}
"""Factor of mean(eps d) in each log-ratio."""


def scale_of(kept: Kept, moved: Moved) -> Numbers:
    """Return the factor of mean(eps d) in the log-ratio that the run optimises: (R,)."""
    name = last_name(kept.config["clipping"]["ratio"])
    scale: Numbers = choose("clipping.ratio", SCALES, name)(moved)
    return scale


def weigh_steps(name: str, schedule: Mapping[str, Numbers]) -> Numbers:
    """Return the weight of each step, by the function that the settings name."""
    dt = schedule["t"] - schedule["t_next"]
    beta = np.abs(schedule["v_gain"]) / dt
    std = schedule["std"]
    trained = schedule["trained"].astype(bool)
    early = np.zeros_like(dt)
    early[np.flatnonzero(trained)[: (trained.sum() + 1) // 2]] = 1
    weights = {
        "uniform": lambda: np.ones_like(dt),
        "std": lambda: std * schedule["trained"].sum() / (std * schedule["trained"]).sum(),
        "inverse_dt": lambda: 1 / dt,
        "beta_over_dt": lambda: beta / dt,
        "inverse_gain": lambda: 1 / (beta * dt),
        "earlier_half": lambda: early,
        "later_half": lambda: trained - early,
    }
    weight: Numbers = choose("clipping.weight", weights, name)()
    return weight


@record
class Losses:
    """What an objective makes of the rows: (R,) each."""

    log_ratio: Numbers
    """The log-ratio that is optimised."""
    loss: Numbers
    """The loss."""
    slope: Numbers
    """d loss / d log-ratio."""
    high: Booleans
    """Above the clip range."""
    low: Booleans
    """Below the clip range."""
    margin: Numbers
    """How far the row is from being decided otherwise, in units of its rounding."""


def apply_objective(kept: Kept, moved: Moved, rounding: float) -> Losses:
    """Apply the objective of the settings; raises ConfigError for one that is not known here.

    `rounding` is the error of mean(eps d) that float32 may make.
    """
    clipping = kept.config["clipping"]
    name = last_name(clipping["ratio"])
    log_ratio = choose("clipping.ratio", RATIOS, name)(moved)
    weight = weigh_steps(last_name(clipping["weight"]), kept.schedule)[kept.rows.step]
    objectives = {"Clip": _clip, "Dppo": _drop}
    rule = choose("clipping", objectives, last_name(clipping))
    losses: Losses = rule(kept, moved, log_ratio, weight, rounding)
    return losses


def _clip(kept: Kept, moved: Moved, log_ratio: Numbers, weight: Numbers, rounding: float) -> Losses:
    """J = w (min(r A, clip(r) A) - A)."""
    low, high = kept.low[kept.rows.step], kept.high[kept.rows.step]
    advantage = kept.rows.advantage
    ratio = np.exp(log_ratio)
    free = ratio * advantage
    clipped = np.clip(ratio, np.exp(low), np.exp(high)) * advantage
    slope = np.where(free > clipped, 0.0, -weight * free)
    nearest = np.minimum(np.abs(log_ratio - low), np.abs(log_ratio - high))
    return Losses(
        log_ratio=log_ratio,
        loss=-weight * (np.minimum(free, clipped) - advantage),
        slope=slope,
        high=log_ratio > high,
        low=log_ratio < low,
        margin=nearest / (rounding * scale_of(kept, moved)),
    )


def _drop(kept: Kept, moved: Moved, log_ratio: Numbers, weight: Numbers, rounding: float) -> Losses:
    """J = w (r A - A), without rows that left the trust region and move further away."""
    limit = kept.config["clipping"]["divergence"]
    advantage = kept.rows.advantage
    far = moved.bias >= limit
    high, low = far & (log_ratio > 0), far & (log_ratio < 0)
    kept_rows = ~np.where(advantage > 0, high, low)
    ratio = np.exp(log_ratio)
    blur = np.sqrt((moved.d**2).mean(1)) / moved.s**2 * rounding + 1e-7 * limit
    nearest = np.abs(moved.bias - limit) / blur
    by_sign = np.abs(log_ratio) / (rounding * scale_of(kept, moved))
    return Losses(
        log_ratio=log_ratio,
        loss=-weight * (ratio - 1) * advantage * kept_rows,
        slope=-weight * ratio * advantage * kept_rows,
        high=high,
        low=low,
        margin=np.where(far, np.minimum(by_sign, nearest), nearest),
    )


def configure_limits(kept: Kept) -> tuple[float, float] | None:
    """Return the log of the clip range as configured; None if it follows the ratios."""
    clipping = kept.config["clipping"]
    if last_name(clipping) == "Dppo":
        spread = np.sqrt(2 * clipping["divergence"] / kept.dimensions)
        return -spread, spread
    if last_name(clipping["adaptation"]) != "Fixed":
        return None
    scale = np.sqrt(REFERENCE_DIMENSIONS / kept.dimensions)
    lower = max(1 - clipping["low"] * scale, LOWEST)
    return np.log(lower), np.log(1 + clipping["high"] * scale)


def penalize(kept: Kept, moved: Moved) -> tuple[Numbers, Numbers]:
    """Return the KL penalty of each row, (R,), and its gradient by the mean, (R, D)."""
    rows = kept.rows
    recipe = kept.config["kl"]
    if last_name(recipe) == "NoKl":
        return np.zeros_like(moved.s), np.zeros_like(rows.mean)
    steps = {key: part[rows.step] for key, part in kept.schedule.items()}
    factors = {
        "gaussian": lambda: 1 / (2 * moved.s**2),
        "flow_grpo": lambda: (steps["t"] - steps["t_next"]) / (2 * moved.s**2),
        "velocity": lambda: 1 / moved.gain**2,
    }
    factor = recipe["beta"] * choose("kl.distance", factors, last_name(recipe["distance"]))()
    if rows.reference_mean is None:
        raise ConfigError(
            "the trajectory lacks the means of the reference, which the KL penalty needs;"
            " train with keep_trajectory again"
        )
    apart = rows.mean - rows.reference_mean
    return factor * (apart**2).mean(1), factor[:, None] * 2 * apart / kept.dimensions


def find_learning(kept: Kept) -> Booleans:
    """Return the rows of the microbatches that went backward; others have no gradient.

    Without a KL penalty, the microbatches of an update in which no row has an advantage come first
    and go forward only. The last one always goes backward, and all processes as many.
    """
    rows = kept.rows
    learning = np.ones_like(rows.step, dtype=bool)
    if last_name(kept.config["kl"]) != "NoKl":
        return learning
    useful = np.unique(rows.microbatch[rows.advantage != 0])
    for update in np.unique(rows.update):
        here = rows.update == update
        parts = [np.unique(rows.microbatch[here & (rows.rank == r)]) for r in np.unique(rows.rank)]
        count = max(1, *(len(np.intersect1d(part, useful)) for part in parts))
        last = np.concatenate([part[-count:] for part in parts])
        learning[here] = np.isin(rows.microbatch[here], last)
    return learning


def measure_gradients(kept: Kept, moved: Moved, losses: Losses, pull: Numbers) -> Numbers:
    """Return |d loss / d velocity| of each row, over the rows of its update on its process: (R,).

    `pull` is the gradient of the KL penalty by the mean, (R, D).
    """
    rows = kept.rows
    name = last_name(kept.config["clipping"]["ratio"])
    by_mean = scale_of(kept, moved)[:, None] * moved.eps
    along_d = moved.d / (moved.s**2)[:, None]
    if name == "log_ratio_raw":
        by_mean = by_mean - along_d
    gradient = losses.slope[:, None] * by_mean / kept.dimensions
    if name == "log_ratio_norm_batch":
        # Each row's bias counts in the log-ratios of all rows of its microbatch.
        pushed = np.bincount(rows.microbatch, weights=losses.slope * moved.s)
        shared = (pushed / np.bincount(rows.microbatch))[rows.microbatch]
        own = losses.slope * moved.s
        gradient = gradient + (shared - own)[:, None] * along_d / kept.dimensions
    part = rows.update + (rows.update.max() + 1) * rows.rank
    count = np.bincount(part)[part]
    size: Numbers = np.linalg.norm(gradient + pull, axis=1) * moved.gain / count
    return size
