"""Nothing is watched."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grpo_guard.metrics import Metrics
from grpo_guard.types import component
from grpo_guard.watch import Look


@component
class NoWatch:
    """Costs nothing."""

    def load(self, device: torch.device) -> Look:
        """Loads nothing."""
        return away


def away(images: Float[Tensor, "B 3 H W"], group: Int[Tensor, " B"]) -> Metrics:
    """Nothing is seen."""
    return {}
