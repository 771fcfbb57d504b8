"""Flow-GRPO's stochastic step, and the diffusion that it shares with DanceGRPO's."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.schema import Advice, AtMost, Positive, component
from grpo_guard.sde.window import StepWindow

Times = Float[Tensor, " T"]
"""A time in [0, 1] for each step; 1 is noise."""
Gains = tuple[Times, Times, Times]
"""(x_gain, v_gain, std) of each step `x_next = x_gain x + v_gain v + std eps`."""


def diffuse(t: Times, t_next: Times, variance: Times) -> Gains:
    """Take Euler-Maruyama steps of a diffusion that keeps the ODE's marginals.

    With sigma^2 = `variance`, mean = x (1 - sigma^2 dt / 2t) - v (1 + sigma^2 (1 - t) / 2t) dt and
    std = sigma sqrt(dt) (arXiv:2505.05470, Eq. 9).
    """
    dt = t - t_next
    x_gain = 1 - variance * dt / (2 * t)
    v_gain = -(1 + variance * (1 - t) / (2 * t)) * dt
    std = (variance * dt).sqrt()
    return x_gain, v_gain, std


@component
class Flow:
    """Diffuse with sigma = level sqrt(t / (1 - t)) (Flow-GRPO, arXiv:2505.05470)."""

    level: Annotated[Positive, AtMost(100), Advice("use sde=ode for steps without noise")]
    """Factor of sigma, above 0; 0.7 for SD3.5 and 0.9 for FLUX are usual."""
    window: StepWindow
    """Which steps are stochastic and trained; the others follow the ODE."""

    def gains(self, t: Times, t_next: Times) -> Gains:
        """Return (x_gain, v_gain, std) of each step."""
        # Sigma is infinite at t = 1; Flow-GRPO's code takes the divisor 1 - t_next there.
        # A scheduler's float32 may come out as .99999994 instead of 1.
        divisor = 1 - torch.where(t < 1 - 1e-5, t, t_next)
        return diffuse(t, t_next, self.level**2 * t / divisor)
