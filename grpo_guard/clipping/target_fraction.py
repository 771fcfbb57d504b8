"""A clip range that follows the ratios, so that a target share of them lies outside it."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grpo_guard.clipping import Multipliers
from grpo_guard.schema import Advice, Fraction, Threshold, component


@component
class TargetFraction:
    """Hold the share of log-ratios outside the clip range at a target (docs/adr/0012).

    Each iteration computes the range at which its own off-policy rows would have met the target.
    The next iteration uses it, averaged geometrically with the range before. The first range of a
    step is taken as it is.
    """

    fraction: Annotated[Fraction, Advice("0.1 to 0.3 is usual")]
    """Target share of log-ratios outside the clip range, in (0, 1); 0.1 to 0.3 is usual."""
    per_step: bool
    """True: one range for each denoising step. False: one range for all steps; use it to compare
    objectives that clip equally often."""
    memory: Annotated[Threshold, Advice("0 forgets the range before")]
    """Weight of the range before in the average, in [0, 1); 0 forgets it."""
    follows_ratios: ClassVar[bool] = True

    def __call__(
        self,
        multipliers: Multipliers,
        excess: Float[Tensor, " R"],
        step: Int[Tensor, " R"],
        steps: int,
    ) -> Multipliers:
        """Return the averaged multipliers; a step whose policy has not moved keeps its own."""
        excess = excess.double()
        rows = [excess[step == t] if self.per_step else excess for t in range(steps)]
        targets = [self._quantile(row) for row in rows]
        before = multipliers or (1.0,) * steps
        return tuple(map(self._average, before, targets))

    def _average(self, old: float, target: float) -> float:
        """Return the next multiplier; a step that was never adapted has exactly 1."""
        if target <= 0:
            return old
        memory = self.memory if old != 1 else 0.0
        return float(old**memory * target ** (1 - memory))

    def _quantile(self, excess: Tensor) -> float:
        # A range of NaN would never recover from one bad row.
        finite = excess[excess.isfinite()]
        return float(torch.quantile(finite, 1 - self.fraction)) if len(finite) else 0.0
