"""What is measured of the pictures of every rollout: looked at, never trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grpo_guard.metrics import Metrics

Look = Callable[[Float[Tensor, "B 3 H W"], Int[Tensor, " B"]], Metrics]
"""(images in [0, 1], the group of each) -> `watch/<name>`, of which parts of a group may be added up."""


@runtime_checkable
class Watch(Protocol):
    """What a run is told about it; nothing is loaded before `load`."""

    def load(self, device: torch.device) -> Look:
        """Load weights; raises ConfigError, naming the key and the remedy, where they are missing."""
