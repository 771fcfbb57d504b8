"""A denoising step as a Gaussian, and how far a policy has moved since it drew one.

Every reduction over latent dimensions is a mean (docs/adr/0001).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from grpo_guard.types import Drift, Step


def trailing(per_row: Float[Tensor, " R"], like: Float[Tensor, "R ..."]) -> Float[Tensor, "R ..."]:
    """Give a per-row value the trailing axes of `like`; this is the only place that does so."""
    return per_row.reshape(-1, *(1,) * (like.ndim - 1))


def advance(step: Step, eps: Float[Tensor, "R ..."]) -> Float[Tensor, "R ..."]:
    """Return the next latents under the given noise: `mean + s eps`."""
    return step.mean + trailing(step.std, eps) * eps


def drift(step: Step, x_next: Float[Tensor, "R ..."], eps: Float[Tensor, "R ..."]) -> Drift:
    """Measure how far `step` has moved from the step that produced `x_next` with noise `eps`.

    The move is taken between next latents under the same noise, not between means. It is the same
    number, needs no stored mean, and is exactly 0 if nothing has changed (docs/adr/0002).
    """
    return _measure(step, advance(step, eps) - x_next, eps)


def drift_from_mean(
    step: Step, x_next: Float[Tensor, "R ..."], old_mean: Float[Tensor, "R ..."]
) -> Drift:
    """Measure how far `step` has moved from `old_mean`; the noise led from there to `x_next`."""
    return _measure(step, step.mean - old_mean, (x_next - old_mean) / trailing(step.std, x_next))


def _measure(step: Step, d: Float[Tensor, "R ..."], eps: Float[Tensor, "R ..."]) -> Drift:
    d = d.flatten(1)
    eps = eps.flatten(1)
    return Drift(
        along=(eps * d).mean(1),
        square=d.square().mean(1),
        std=step.std,
        gain=step.gain,
        dimensions=d.shape[1],
    )
