"""The clip range as it is given."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from grpo_guard.types import component


@runtime_checkable
class Reach(Protocol):
    """How far the clip range reaches at every step, as a multiple of the range that was given."""

    def __call__(
        self,
        reach: tuple[float, ...],
        excess: Float[Tensor, " R"],
        step: Int[Tensor, " R"],
        steps: int,
    ) -> tuple[float, ...]:
        """The next reach, one number a step or none for 1 at every step.

        `excess` is by how much the rows' log-ratios lie beyond the range given: above 1 outside it, 0 at ratio 1.
        """


@component
class Fixed:
    """Always the range that was given."""

    def __call__(
        self,
        reach: tuple[float, ...],
        excess: Float[Tensor, " R"],
        step: Int[Tensor, " R"],
        steps: int,
    ) -> tuple[float, ...]:
        """The reach as it was."""
        return reach
