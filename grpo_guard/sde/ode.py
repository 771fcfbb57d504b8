"""The probability-flow ODE, solved by Euler's method."""

from __future__ import annotations

from typing import ClassVar

import torch

from grpo_guard.schema import component
from grpo_guard.sde.flow import Gains, Times
from grpo_guard.sde.window import StepWindow, Window


@component
class Ode:
    """Take steps mean = x - v dt without noise: for sampling; without noise there is no ratio."""

    window: StepWindow = Window()
    """Which steps count as trained; it does not change a step."""
    level: ClassVar[float] = 0.0

    def gains(self, t: Times, t_next: Times) -> Gains:
        """Return (x_gain, v_gain, std) of each step; std is 0."""
        return torch.ones_like(t), t_next - t, torch.zeros_like(t)
