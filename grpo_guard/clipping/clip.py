"""PPO's clipped surrogate over any of the log-ratios and step weights of GRPO-Guard's Table 2."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.clipping.fixed import Reach
from grpo_guard.types import Drift, Objective, Replay, Rows, Schedule, component, require

REFERENCE_DIMENSIONS = 65_536
"""Latent dimensions at which clip ranges are given: 512 px SD3.5 and FLUX.1."""


@component
class Clip:
    """J = w_t min(r A, clip(r, 1 - low, 1 + high) A), r = exp(ratio(drift)); the loss leaves out the constant w_t A.

    `high` and `low` are given at D = 65536 and scaled by sqrt(65536 / D), as the spread of a log-ratio is; `clip` may
    widen or narrow them as training goes on, and `reach` (not a setting) is by how much, step by step.
    """

    ratio: Callable[[Drift], Float[Tensor, " R"]]
    weight: Callable[[Schedule], Float[Tensor, " T"]]
    clip: Reach
    high: float
    low: float
    reach: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        require(
            self.high > 0, f"high={self.high} is not positive; give the width above 1, such as 2e-6"
        )
        require(
            0 < self.low < 1,
            f"low={self.low} is outside (0, 1); give the width below 1, such as 2e-6",
        )

    def bounds(
        self, dimensions: int, steps: int
    ) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
        """(log(1 - low), log(1 + high)), scaled to the dimensions, times the reach of each step."""
        scale = math.sqrt(REFERENCE_DIMENSIONS / dimensions)
        reach = torch.tensor(self.reach or (1.0,) * steps, dtype=torch.float64)
        return math.log1p(-min(self.low * scale, 0.99)) * reach, math.log1p(
            self.high * scale
        ) * reach

    def __call__(self, drift: Drift, rows: Rows, schedule: Schedule) -> Objective:
        """Losses of the rows and where their ratios leave the clip range."""
        log_ratio = self.ratio(drift)
        low, high = (
            b.to(log_ratio)[rows.step] for b in self.bounds(drift.dimensions, len(schedule))
        )
        free = torch.expm1(log_ratio) * rows.advantage
        clipped = torch.expm1(log_ratio.clamp(low, high)) * rows.advantage
        loss = -self.weight(schedule)[rows.step] * torch.minimum(free, clipped)
        return Objective(loss=loss, log_ratio=log_ratio, high=log_ratio > high, low=log_ratio < low)

    def reaching(self, reach: tuple[float, ...]) -> Clip:
        """The same as it was when its reach was this."""
        return dataclasses.replace(self, reach=reach)

    def adapted(self, replay: Replay, schedule: Schedule) -> Clip:
        """The same with the reach that `clip` chooses."""
        log_ratio, start = self.ratio(replay.drift), dataclasses.replace(self, reach=())
        low, high = (
            b.to(log_ratio)[replay.rows.step]
            for b in start.bounds(replay.drift.dimensions, len(schedule))
        )
        excess = torch.maximum(log_ratio / low, log_ratio / high)
        return dataclasses.replace(
            self, reach=self.clip(self.reach, excess, replay.rows.step, len(schedule))
        )
