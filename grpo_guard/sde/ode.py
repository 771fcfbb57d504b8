"""The probability-flow ODE, by Euler's method."""

from __future__ import annotations

from typing import ClassVar

import torch

from grpo_guard.sde.flow import Gains, Times
from grpo_guard.sde.window import Window, Windowed
from grpo_guard.types import component


@component
class Ode:
    """mean = x - v dt without noise: for sampling; there is no ratio to train on."""

    window: Windowed = Window()
    level: ClassVar[float] = 0.0

    def gains(self, t: Times, t_next: Times) -> Gains:
        """(x_gain, v_gain, std) of each step."""
        return torch.ones_like(t), t_next - t, torch.zeros_like(t)
