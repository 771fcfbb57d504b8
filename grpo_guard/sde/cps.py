"""Flow-CPS: coefficients-preserving sampling."""

from __future__ import annotations

import math
from typing import Annotated

from grpo_guard.schema import Rule, component
from grpo_guard.sde.flow import Gains, Times
from grpo_guard.sde.window import StepWindow


@component
class Cps:
    """Replace part of the predicted noise by fresh noise (Flow-CPS, arXiv:2509.05952).

    mean = (1 - t_next) x0_hat + sqrt(t_next^2 - std^2) x1_hat, std = t_next sin(level pi / 2).
    Image and noise keep the coefficients of the schedule, so that no step adds too much noise.
    """

    level: Annotated[
        float,
        Rule(lambda x: 0 < x <= 1, "is outside (0, 1]", "CPS turns noise by level * 90 degrees"),
    ]
    """Share of the noise that is replaced, in (0, 1]; as an angle, level * 90 degrees."""
    window: StepWindow
    """Which steps are stochastic and trained; the others follow the ODE."""

    def gains(self, t: Times, t_next: Times) -> Gains:
        """Return (x_gain, v_gain, std) of each step.

        They follow from x0_hat = x - t v and x1_hat = x + (1 - t) v.
        """
        std = t_next * math.sin(self.level * math.pi / 2)
        kept = (t_next.square() - std.square()).clamp(min=0).sqrt()
        return 1 - t_next + kept, (1 - t) * kept - t * (1 - t_next), std
