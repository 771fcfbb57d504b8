"""Ratios -> objective."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from grpo_guard.types import Drift, Objective, Rows, Schedule


@runtime_checkable
class Clipping(Protocol):
    """What an update minimises."""

    def bounds(self, dimensions: int) -> tuple[float, float]:
        """(lower, upper) limits of the log-ratio for latents of so many dimensions."""

    def __call__(self, drift: Drift, rows: Rows, schedule: Schedule) -> Objective:
        """Losses of the rows; `schedule` is the whole one, its trained steps fix a weight's scale."""
