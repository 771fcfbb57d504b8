"""Turns rewards into advantages."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from grpo_guard.types import Rewards


@runtime_checkable
class Advantage(Protocol):
    """Measures how much better each sample is than the other samples of its group."""

    def __call__(self, rewards: Rewards, group: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return the advantages, where `group` numbers the group of each sample.

        A sample that could not be scored has advantage 0 and does not count in any statistic.
        """
