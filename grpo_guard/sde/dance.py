"""DanceGRPO's stochastic step."""

from __future__ import annotations

import torch

from grpo_guard.sde.flow import Gains, Times, diffuse
from grpo_guard.sde.window import Windowed
from grpo_guard.types import component, require


@component
class Dance:
    """sigma = level at every time (arXiv 2505.07818).

    Written there as `x - v dt - (level^2 / 2) (x - (1 - t) x0_hat) / t^2 dt`, which is the same diffusion as `Flow`'s.
    """

    level: float
    window: Windowed

    def __post_init__(self) -> None:
        require(
            self.level > 0,
            f"level={self.level} is not positive; use sde=ode for steps without noise",
        )

    def gains(self, t: Times, t_next: Times) -> Gains:
        """(x_gain, v_gain, std) of each step."""
        return diffuse(t, t_next, torch.full_like(t, self.level**2))
