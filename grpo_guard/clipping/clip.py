"""PPO's clipped surrogate over any log-ratio and step weight of GRPO-Guard's Table 2."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.clipping import Adaptation, Limits
from grpo_guard.schema import Advice, Fraction, Name, Positive, component
from grpo_guard.types import Drift, Objective, Rows, Schedule

REFERENCE_DIMENSIONS = 65_536
"""Latent dimensions at which clip ranges are given: SD3.5 and FLUX.1 at 512 px."""

LARGEST_LOW = 0.99
"""Largest width below 1 after scaling to a small latent: log(1 - low) must stay finite."""


@component
class Clip:
    """J = w_t min(r A, clip(r, 1 - low, 1 + high) A) with r = exp(ratio(drift)).

    The loss leaves out the constant w_t A, so that an unmoved policy has loss 0
    (arXiv 2510.22319, Eq. 7 and Table 2).
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
    adaptation: Annotated[Adaptation, Advice("give a choice of conf/clipping/adaptation")]
    """How the clip range follows the ratios (conf/clipping/adaptation)."""
    high: Annotated[Positive, Advice("give the width above 1, such as 2e-6")]
    """Width of the clip range above 1, at D = 65536; positive. Scaled by sqrt(65536 / D)."""
    low: Annotated[Fraction, Advice("give the width below 1, such as 2e-6")]
    """Width of the clip range below 1, at D = 65536; in (0, 1). Scaled by sqrt(65536 / D)."""

    range_key: ClassVar[str] = "high"
    idles_without_advantage: ClassVar[bool] = True

    def limits(self, dimensions: int, steps: int) -> Limits:
        """Return (log(1 - low), log(1 + high)) at every step, scaled to the latent dimensions.

        The spread of a log-ratio falls as 1 / sqrt(D), so its limits do too (docs/adr/0001).
        """
        scale = math.sqrt(REFERENCE_DIMENSIONS / dimensions)
        ones = torch.ones(steps, dtype=torch.float64)
        lower = math.log1p(-min(self.low * scale, LARGEST_LOW))
        upper = math.log1p(self.high * scale)
        return lower * ones, upper * ones

    def __call__(self, drift: Drift, rows: Rows, schedule: Schedule, limits: Limits) -> Objective:
        """Return the losses of the rows and where their log-ratios leave the clip range."""
        log_ratio = self.ratio(drift)
        low, high = (limit.to(log_ratio)[rows.step] for limit in limits)
        # expm1 keeps the digits of r - 1 that exp would round away next to 1.
        free = torch.expm1(log_ratio) * rows.advantage
        clipped = torch.expm1(log_ratio.clamp(low, high)) * rows.advantage
        loss = -self.weight(schedule)[rows.step] * torch.minimum(free, clipped)
        return Objective(loss=loss, log_ratio=log_ratio, high=log_ratio > high, low=log_ratio < low)
