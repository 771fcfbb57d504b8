"""Log-ratios of two Gaussian steps that share their standard deviation, in closed form.

Every reduction over latent dimensions is a mean. With `d = mean_new - mean_old` and `eps = (x_next - mean_old) / s`
a log-ratio is a difference of O(1) log-probabilities that agree in all but their last digits, so it is never
computed as one: float32 resolves 1.2e-7 there, and the published Guard clip range is 2e-6.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from grpo_guard.types import Drift


def log_ratio_raw(drift: Drift) -> Float[Tensor, " R"]:
    """log r = mean(eps d) / s - mean(d^2) / 2 s^2, the importance ratio of Flow-GRPO (arXiv 2505.05470)."""
    return drift.along / drift.std - drift.square / (2 * drift.std.square())


def log_ratio_mean(drift: Drift) -> Float[Tensor, " R"]:
    """mean(eps d) / s: the raw log-ratio with its negative bias added back (arXiv 2510.22319, Table 2)."""
    return drift.along / drift.std


def log_ratio_norm(drift: Drift) -> Float[Tensor, " R"]:
    """mean(eps d): RatioNorm (arXiv 2510.22319, Eq. 8)."""
    return drift.along


def log_ratio_norm_batch(drift: Drift) -> Float[Tensor, " R"]:
    """RatioNorm as the authors' code has it: the bias that is added back is the mean over the rows given.

    For parity only: rows of one call are no longer independent, and those that moved more than the mean stay biased.
    """
    bias = drift.square / (2 * drift.std.square())
    return drift.along - drift.std * (bias - bias.mean())


def log_ratio_velocity(drift: Drift) -> Float[Tensor, " R"]:
    """mean(eps d) / |d mean / d velocity|: one clip range means the same on every step (experimental, ours)."""
    return drift.along / drift.gain
