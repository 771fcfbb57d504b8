"""Ratios -> objective: what an update minimises, and the clip range that restrains it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grpo_guard.types import Drift, Objective, Replay, Rows, Schedule

Limits = tuple[Float[Tensor, " T"], Float[Tensor, " T"]]
"""(lower, upper) limit of the log-ratio at every denoising step, float64."""

Multipliers = tuple[float, ...]
"""Factors of the clip range, one per denoising step; an empty tuple means 1 at every step."""


@runtime_checkable
class Adaptation(Protocol):
    """How the clip range follows the ratios as training goes on."""

    @property
    def follows_ratios(self) -> bool:
        """Whether the range changes; multipliers of a state mean nothing to one that does not."""

    def __call__(
        self,
        multipliers: Multipliers,
        excess: Float[Tensor, " R"],
        step: Int[Tensor, " R"],
        steps: int,
    ) -> Multipliers:
        """Return the multipliers of the next iteration.

        `excess` is each row's log-ratio in units of the clip range as it was configured: 0 at
        ratio 1, above 1 outside the range. `step` is the row's step, of `steps` in all.
        """


@runtime_checkable
class Clipping(Protocol):
    """An objective. It has no state: the session keeps the multipliers of its clip range."""

    @property
    def name(self) -> str:
        """Name of the variant, shown by pages and dashboards."""

    @property
    def ratio(self) -> Callable[[Drift], Float[Tensor, " R"]]:
        """The log-ratio that is optimised."""

    @property
    def adaptation(self) -> Adaptation:
        """How the clip range follows the ratios."""

    @property
    def range_key(self) -> str:
        """Name of the setting that widens the clip range; warnings say it."""

    @property
    def idles_without_advantage(self) -> bool:
        """Whether a row of advantage 0 has neither loss nor gradient: its backward is left out."""

    def limits(self, dimensions: int, steps: int) -> Limits:
        """Return the limits as configured, for latents of so many dimensions."""

    def __call__(self, drift: Drift, rows: Rows, schedule: Schedule, limits: Limits) -> Objective:
        """Return the losses of the rows.

        `schedule` is the whole one, because its trained steps fix the scale of a step weight;
        `limits` are those of this iteration.
        """


def scale_limits(limits: Limits, multipliers: Multipliers) -> Limits:
    """Return the limits, times the multiplier of each step."""
    low, high = limits
    factor = torch.tensor(multipliers or (1.0,) * len(low), dtype=torch.float64)
    return low * factor, high * factor


def adapt(
    clipping: Clipping, multipliers: Multipliers, replay: Replay, schedule: Schedule
) -> Multipliers:
    """Return the multipliers of the next iteration, from what this one's updates saw.

    `replay` holds the rows of all processes, so that all of them choose the same range.
    """
    log_ratio = replay.objective.log_ratio
    steps = len(schedule)
    low, high = clipping.limits(replay.drift.dimensions, steps)
    at = replay.rows.step
    excess = torch.maximum(log_ratio / low.to(log_ratio)[at], log_ratio / high.to(log_ratio)[at])
    return clipping.adaptation(multipliers, excess, at, steps)
