"""Rewards -> advantages."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from grpo_guard.types import Rewards


@runtime_checkable
class Advantage(Protocol):
    """How much better each sample is than the other samples of its group."""

    def __call__(self, rewards: Rewards, group: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Advantages; a failed sample has 0 and is left out of its group's statistics."""
