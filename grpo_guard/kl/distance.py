"""Distances between a step of the policy and the reference's.

Each takes `square` = mean((mean - mean_ref)^2) over the latent's dimensions, one value a row, and
the rows' schedule. docs/adr/0013 says why there are three.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from grpo_guard.types import Schedule


def gaussian(square: Float[Tensor, " R"], steps: Schedule) -> Float[Tensor, " R"]:
    """Return square / 2 s^2: the KL divergence of Gaussians with equal std s, per dimension."""
    return square / (2 * steps.std.square())


def flow_grpo(square: Float[Tensor, " R"], steps: Schedule) -> Float[Tensor, " R"]:
    """Return square / 2 sigma^2 with sigma = s / sqrt(dt), as Flow-GRPO's code computes it.

    arXiv:2505.05470. It is the KL divergence of the two Gaussians times dt.
    """
    return square * (steps.t - steps.t_next) / (2 * steps.std.square())


def velocity(square: Float[Tensor, " R"], steps: Schedule) -> Float[Tensor, " R"]:
    """Return mean((v - v_ref)^2), which does not depend on the step."""
    return square / steps.v_gain.square()
