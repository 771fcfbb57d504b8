"""Log-ratios of two Gaussian steps that share their standard deviation, in closed form.

With `d = mean_new - mean_old` and `eps = (x_next - mean_old) / s`, a log-ratio is the difference
of two log-probabilities of O(1) that agree in all but their last digits. It is never computed as
that difference: float32 resolves 1.2e-7 next to 1, and the published Guard clip range is 2e-6
(docs/adr/0002).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from grpo_guard.types import Drift


def log_ratio_raw(drift: Drift) -> Float[Tensor, " R"]:
    """log r = mean(eps d) / s - mean(d^2) / 2 s^2: Flow-GRPO's ratio (arXiv 2505.05470)."""
    return drift.along / drift.std - drift.square / (2 * drift.std.square())


def log_ratio_mean(drift: Drift) -> Float[Tensor, " R"]:
    """mean(eps d) / s: the raw log-ratio with its bias added back (arXiv 2510.22319, Table 2)."""
    return drift.along / drift.std


def log_ratio_norm(drift: Drift) -> Float[Tensor, " R"]:
    """mean(eps d): RatioNorm (arXiv 2510.22319, Eq. 8)."""
    return drift.along


def log_ratio_norm_batch(drift: Drift) -> Float[Tensor, " R"]:
    """RatioNorm as the authors' code has it: it adds back the mean bias of the rows it is given.

    Use it for parity only. The rows of one call are no longer independent, and rows that moved
    further than the mean stay biased (docs/adr/0008).
    """
    bias = drift.square / (2 * drift.std.square())
    return drift.along - drift.std * (bias - bias.mean())


def log_ratio_velocity(drift: Drift) -> Float[Tensor, " R"]:
    """mean(eps d) / |d mean / d velocity|: one clip range means the same on every step (ours)."""
    return drift.along / drift.gain
