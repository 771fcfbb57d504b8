"""DanceGRPO's stochastic step."""

from __future__ import annotations

from typing import Annotated

import torch

from grpo_guard.schema import Advice, AtMost, Positive, component
from grpo_guard.sde.flow import Gains, Times, diffuse
from grpo_guard.sde.window import StepWindow


@component
class Dance:
    """Diffuse with the same sigma = level at every time (DanceGRPO, arXiv:2505.07818).

    The paper writes the mean as `x - v dt - (level^2 / 2) (x - (1 - t) x0_hat) / t^2 dt`, which is
    the same diffusion as in `Flow` with another sigma.
    """

    level: Annotated[Positive, AtMost(100), Advice("use sde=ode for steps without noise")]
    """Sigma of the diffusion, above 0."""
    window: StepWindow
    """Which steps are stochastic and trained; the others follow the ODE."""

    def gains(self, t: Times, t_next: Times) -> Gains:
        """Return (x_gain, v_gain, std) of each step."""
        return diffuse(t, t_next, torch.full_like(t, self.level**2))
