"""Flow-CPS: coefficients-preserving sampling."""

from __future__ import annotations

import math

from grpo_guard.sde.flow import Gains, Times
from grpo_guard.sde.window import Windowed
from grpo_guard.types import component, require


@component
class Cps:
    """mean = (1 - t_next) x0_hat + sqrt(t_next^2 - s^2) x1_hat with s = t_next sin(level pi / 2) (arXiv 2509.05952)."""

    level: float
    window: Windowed

    def __post_init__(self) -> None:
        require(
            0 < self.level <= 1,
            f"level={self.level} is outside (0, 1]; CPS turns noise by level * 90 degrees",
        )

    def gains(self, t: Times, t_next: Times) -> Gains:
        """(x_gain, v_gain, std) of each step, from x0_hat = x - t v and x1_hat = x + (1 - t) v."""
        std = t_next * math.sin(self.level * math.pi / 2)
        kept = (t_next.square() - std.square()).clamp(min=0).sqrt()
        return 1 - t_next + kept, (1 - t) * kept - t * (1 - t_next), std
