"""Flow-DPPO's trust region: terms are dropped by divergence instead of clipped by ratio."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.types import Drift, Objective, Replay, Rows, Schedule, component, require


@component
class Dppo:
    """J = w_t r A, where a row's term is dropped once KL = mean(d^2) / 2 s^2 reaches `divergence` and it moves away.

    It moves away when A > 0 and r > 1, or A < 0 and r < 1 (arXiv 2606.11025). The divergence is mean-reduced over
    dimensions, as everything here is, and is not scaled with them.
    """

    ratio: Callable[[Drift], Float[Tensor, " R"]]
    weight: Callable[[Schedule], Float[Tensor, " T"]]
    divergence: float
    reach: ClassVar[tuple[float, ...]] = ()

    def __post_init__(self) -> None:
        require(
            self.divergence > 0,
            f"divergence={self.divergence} is not positive; give a KL such as 1e-4",
        )

    def bounds(
        self, dimensions: int, steps: int
    ) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
        """One standard deviation of log r at the limit, sqrt(2 KL / D): a scale for its histograms, not a clip."""
        spread = torch.full(
            (steps,), math.sqrt(2 * self.divergence / dimensions), dtype=torch.float64
        )
        return -spread, spread

    def __call__(self, drift: Drift, rows: Rows, schedule: Schedule) -> Objective:
        """Losses of the rows; `high` and `low` are those beyond the limit with a ratio above or below 1."""
        log_ratio = self.ratio(drift)
        far = drift.square / (2 * drift.std.square()) >= self.divergence
        high, low = far & (log_ratio > 0), far & (log_ratio < 0)
        dropped = torch.where(rows.advantage > 0, high, low)
        surrogate = torch.where(dropped, 0.0, torch.expm1(log_ratio) * rows.advantage)
        loss = -self.weight(schedule)[rows.step] * surrogate
        return Objective(loss=loss, log_ratio=log_ratio, high=high, low=low)

    def reaching(self, reach: tuple[float, ...]) -> Dppo:
        """The same: it has no reach."""
        return self

    def adapted(self, replay: Replay, schedule: Schedule) -> Dppo:
        """The same: the limit is fixed."""
        return self
