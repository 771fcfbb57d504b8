"""Measure nothing of a rollout's images."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grpo_guard.metrics import Metrics
from grpo_guard.schema import component
from grpo_guard.watch import Observe


@component
class NoWatch:
    """Measure nothing. This costs neither time nor memory."""

    weight_bytes: ClassVar[int] = 0
    """Always 0: there are no weights."""

    def load(self, device: torch.device) -> Observe:
        """Return a function that measures nothing."""
        return observe_nothing


def observe_nothing(images: Float[Tensor, "B 3 H W"], group: Int[Tensor, " B"]) -> Metrics:
    """Return no metrics."""
    return {}
