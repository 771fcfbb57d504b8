"""A denoising step as a Gaussian, and how far a policy has moved since it drew one.

Every reduction over latent dimensions is a mean (docs/adr/0001).
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
