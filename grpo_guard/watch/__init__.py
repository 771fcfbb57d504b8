"""What a run measures of its rollouts' images without training on it (docs/adr/0017)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grpo_guard.metrics import Metrics

Observe = Callable[[Float[Tensor, "B 3 H W"], Int[Tensor, " B"]], Metrics]
"""(images in [0, 1], group of each image) -> metrics `watch/<name>`.

Parts of a rollout are observed on their own and the metrics merged; the images of a group may be
in different parts and on different processes.
"""


@runtime_checkable
class Watch(Protocol):
    """Measures images. Nothing is loaded before `load`."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of the network weights that `load` puts on the device."""

    def load(self, device: torch.device) -> Observe:
        """Load the weights and return the function that measures images.

        Raises ConfigError, which names the key and the remedy, if the weights are missing.
        """
