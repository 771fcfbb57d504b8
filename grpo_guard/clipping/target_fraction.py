"""A clip range that follows the ratios, so that a wanted share of them is outside it."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grpo_guard.types import component, require


@component
class TargetFraction:
    """Holds the share of ratios outside the clip range at `fraction`, on each step or over all steps together.

    Every iteration chooses the range at which its own off-policy rows would have met the target. The next iteration
    uses it, averaged (geometrically) with the range before, which keeps a share `memory`; the first choice is taken
    whole. Set `per_step` false to compare objectives: one range for all steps, alike in how much it clips.
    """

    fraction: float
    per_step: bool
    memory: float

    def __post_init__(self) -> None:
        require(
            0 < self.fraction < 1,
            f"fraction={self.fraction} is outside (0, 1); 0.1 to 0.3 is usual",
        )
        require(
            0 <= self.memory < 1,
            f"memory={self.memory} is outside [0, 1); 0 forgets the range before",
        )

    def __call__(
        self,
        reach: tuple[float, ...],
        excess: Float[Tensor, " R"],
        step: Int[Tensor, " R"],
        steps: int,
    ) -> tuple[float, ...]:
        """The reach that would have met the target, mixed with the one before; unchanged while nothing has moved."""
        excess = excess.double()
        wanted = [
            self._quantile(excess[step == t] if self.per_step else excess) for t in range(steps)
        ]
        memory, before = (self.memory, reach) if reach else (0.0, (1.0,) * steps)
        return tuple(
            b**memory * w ** (1 - memory) if w > 0 else b
            for b, w in zip(before, wanted, strict=True)
        )

    def _quantile(self, excess: Tensor) -> float:
        return float(torch.quantile(excess, 1 - self.fraction)) if len(excess) else 0.0
