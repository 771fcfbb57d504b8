"""Flow-DPPO's trust region: terms are dropped by divergence instead of clipped by ratio."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.clipping import Adaptation, Limits
from grpo_guard.clipping.fixed import Fixed
from grpo_guard.schema import Advice, Name, Positive, component
from grpo_guard.types import Drift, Objective, Rows, Schedule


@component
class Dppo:
    """J = w_t r A without rows that have left the trust region and move further away.

    A row has left it once KL = mean(d^2) / 2 s^2 reaches `divergence`. It moves away when A > 0
    and r > 1, or A < 0 and r < 1 (arXiv 2606.11025).
    """

    name: Name
    """Name of the variant, shown by pages and dashboards."""
    ratio: Annotated[
        Callable[[Drift], Float[Tensor, " R"]], Advice("give a choice of conf/clipping/ratio")
    ]
    """The log-ratio: raw, mean, norm, norm_batch or velocity (conf/clipping/ratio)."""
    weight: Annotated[
        Callable[[Schedule], Float[Tensor, " T"]], Advice("give a choice of conf/clipping/weight")
    ]
    """Weight of each denoising step in the gradient (conf/clipping/weight)."""
    divergence: Annotated[Positive, Advice("give a KL such as 1e-5")]
    """KL divergence at which a row leaves the trust region; positive. It is a mean over latent
    dimensions, as every reduction here, and is not scaled with them."""

    adaptation: ClassVar[Adaptation] = Fixed()
    range_key: ClassVar[str] = "divergence"
    idles_without_advantage: ClassVar[bool] = True

    def limits(self, dimensions: int, steps: int) -> Limits:
        """Return one standard deviation of log r at the limit, sqrt(2 KL / D), on either side.

        It is the scale of the logged histograms; nothing is clipped there.
        """
        spread = torch.full(
            (steps,), math.sqrt(2 * self.divergence / dimensions), dtype=torch.float64
        )
        return -spread, spread

    def __call__(self, drift: Drift, rows: Rows, schedule: Schedule, limits: Limits) -> Objective:
        """Return the losses; `high` and `low` are rows beyond the limit with r above, below 1."""
        log_ratio = self.ratio(drift)
        far = drift.square / (2 * drift.std.square()) >= self.divergence
        high = far & (log_ratio > 0)
        low = far & (log_ratio < 0)
        dropped = torch.where(rows.advantage > 0, high, low)
        surrogate = torch.where(dropped, 0.0, torch.expm1(log_ratio) * rows.advantage)
        loss = -self.weight(schedule)[rows.step] * surrogate
        return Objective(loss=loss, log_ratio=log_ratio, high=high, low=low)
