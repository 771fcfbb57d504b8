"""Ratios -> objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from grpo_guard.types import Drift, Objective, Replay, Rows, Schedule


@runtime_checkable
class Clipping(Protocol):
    """What an update minimises."""

    @property
    def ratio(self) -> Callable[[Drift], Float[Tensor, " R"]]:
        """The log-ratio that is optimised."""

    @property
    def reach(self) -> tuple[float, ...]:
        """How much wider or narrower its range has become, step by step; empty where nothing adapts."""

    def reaching(self, reach: tuple[float, ...]) -> Clipping:
        """The same as it was when its reach was this."""

    def bounds(
        self, dimensions: int, steps: int
    ) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
        """(lower, upper) limits of the log-ratio at every step, for latents of so many dimensions; float64."""

    def __call__(self, drift: Drift, rows: Rows, schedule: Schedule) -> Objective:
        """Losses of the rows; `schedule` is the whole one, its trained steps fix a weight's scale."""

    def adapted(self, replay: Replay, schedule: Schedule) -> Clipping:
        """The objective of the next iteration, given what this one's off-policy updates saw."""
