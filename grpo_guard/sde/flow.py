"""Flow-GRPO's stochastic step."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.sde.window import Windowed
from grpo_guard.types import component, require

Times = Float[Tensor, " T"]
Gains = tuple[Times, Times, Times]


def diffuse(t: Times, t_next: Times, variance: Times) -> Gains:
    """Euler-Maruyama of a diffusion sigma^2 = `variance` that keeps the ODE's marginals (arXiv 2505.05470, Eq. 9).

    mean = x (1 - sigma^2 dt / 2t) - v (1 + sigma^2 (1 - t) / 2t) dt, and s = sigma sqrt(dt).
    """
    dt = t - t_next
    return (
        1 - variance * dt / (2 * t),
        -(1 + variance * (1 - t) / (2 * t)) * dt,
        (variance * dt).sqrt(),
    )


@component
class Flow:
    """sigma = level sqrt(t / (1 - t)); at t = 1 the divisor is 1 - t_next, as in Flow-GRPO's code."""

    level: float
    window: Windowed

    def __post_init__(self) -> None:
        require(
            self.level > 0,
            f"level={self.level} is not positive; use sde=ode for steps without noise",
        )

    def gains(self, t: Times, t_next: Times) -> Gains:
        """(x_gain, v_gain, std) of each step."""
        return diffuse(t, t_next, self.level**2 * t / (1 - torch.where(t < 1, t, t_next)))
