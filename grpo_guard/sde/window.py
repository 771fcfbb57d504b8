"""Which steps are stochastic and trained."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from grpo_guard.types import component, require


@component
class Window:
    """Steps `first` up to (not including) `last`; by default all but a schedule's last, which is never trained."""

    first: int = 0
    last: int | None = None

    def __post_init__(self) -> None:
        last = self.last
        require(self.first >= 0, f"first={self.first} is negative; count steps from 0")
        require(last is None or last > self.first, f"last={last} leaves no step; choose one above {self.first}")

    def check(self, steps: int) -> None:
        """Refuse a window that a schedule of so many steps does not hold."""
        end = steps - 1 if self.last is None else self.last
        require(
            end < steps,
            f"sde.window.last={end} reaches the last of {steps} steps, never trained; give at most {steps - 1}",
        )
        require(
            self.first < end, f"sde.window.first={self.first} leaves no trained step of {steps}; give less than {end}"
        )

    def steps(self, count: int) -> Bool[Tensor, " T"]:
        """True inside the window."""
        index = torch.arange(count)
        return (index >= self.first) & (index < (count - 1 if self.last is None else self.last))
