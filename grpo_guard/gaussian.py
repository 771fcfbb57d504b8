"""Log-ratios of two Gaussian steps that share their standard deviation, in closed form.

Every reduction over latent dimensions is a mean. With `d = mean_new - mean_old` and `eps = (x_next - mean_old) / s`
a log-ratio is a difference of O(1) log-probabilities that agree in all but their last digits, so it is never
computed as one: float32 resolves 1.2e-7 there, and the published Guard clip range is 2e-6.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from grpo_guard.types import Drift, Step


def trailing(per_row: Float[Tensor, " R"], like: Float[Tensor, "R ..."]) -> Float[Tensor, "R ..."]:
    """Give a per-row value the trailing axes of `like`; the only place where this is done."""
    return per_row.reshape(-1, *(1,) * (like.ndim - 1))


def advance(step: Step, eps: Float[Tensor, "R ..."]) -> Float[Tensor, "R ..."]:
    """The next latent under the given noise: `mean + s eps`."""
    return step.mean + trailing(step.std, eps) * eps


def drift(
    step: Step,
    x_next: Float[Tensor, "R ..."],
    eps: Float[Tensor, "R ..."],
    old_mean: Float[Tensor, "R ..."] | None = None,
) -> Drift:
    """How far `step` has moved from the one that produced `x_next` with noise `eps`, or from one of mean `old_mean`.

    Without `old_mean`, `d` is taken between next latents under the same noise, not between means: it is the same
    number, needs no stored mean, and is exactly zero when nothing has changed. With it, the noise is what led from that
    mean to `x_next`.
    """
    if old_mean is None:
        d = advance(step, eps) - x_next
    else:
        d, eps = step.mean - old_mean, (x_next - old_mean) / trailing(step.std, x_next)
    d, eps = d.flatten(1), eps.flatten(1)
    return Drift(
        along=(eps * d).mean(1),
        square=d.square().mean(1),
        std=step.std,
        gain=step.gain,
        dimensions=d.shape[1],
    )


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
