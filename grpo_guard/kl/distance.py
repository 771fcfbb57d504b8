"""Divergences of two steps from `square` = mean((mean - mean_ref)^2), one value a row."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from grpo_guard.types import Schedule


def gaussian(square: Float[Tensor, " R"], steps: Schedule) -> Float[Tensor, " R"]:
    """square / 2 s^2: the KL divergence of two Gaussians of one standard deviation, per dimension."""
    return square / (2 * steps.std.square())


def flow_grpo(square: Float[Tensor, " R"], steps: Schedule) -> Float[Tensor, " R"]:
    """square / 2 sigma^2 with sigma = s / sqrt(dt): Flow-GRPO's code (arXiv 2505.05470), a KL without its dt."""
    return square * (steps.t - steps.t_next) / (2 * steps.std.square())


def velocity(square: Float[Tensor, " R"], steps: Schedule) -> Float[Tensor, " R"]:
    """mean((v - v_ref)^2), whatever the step."""
    return square / steps.v_gain.square()
