"""A clip range that stays as it was configured."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from grpo_guard.clipping import Multipliers
from grpo_guard.schema import component


@component
class Fixed:
    """Keep the clip range as it was configured."""

    follows_ratios: ClassVar[bool] = False

    def __call__(
        self,
        multipliers: Multipliers,
        excess: Float[Tensor, " R"],
        step: Int[Tensor, " R"],
        steps: int,
    ) -> Multipliers:
        """Return no multipliers."""
        return ()
