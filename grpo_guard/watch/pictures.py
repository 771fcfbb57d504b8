"""Measure how images drift, and whether the images of a prompt become alike."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grpo_guard.metrics import Metric, Metrics, dispersion, mean
from grpo_guard.reward.diversity import Diversity
from grpo_guard.reward.statistics import ImageStatistics
from grpo_guard.schema import component
from grpo_guard.watch import Observe


@component
class Pictures:
    """Measure plain statistics of images and their diversity within a group.

    Images that are not finite are left out.
    """

    statistics: ImageStatistics
    """The statistics, such as `watch/saturation`."""
    diversity: Diversity
    """The encoder in whose embeddings images of a group are compared: `watch/<its name>`."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of the encoder's weights."""
        return self.diversity.weight_bytes

    def load(self, device: torch.device) -> Observe:
        """Load the encoder and return the function that measures images."""
        measure = self.statistics.load(device)
        encode = self.diversity.load_encoder(device)

        @torch.no_grad()
        def observe(images: Float[Tensor, "B 3 H W"], group: Int[Tensor, " B"]) -> Metrics:
            statistics = measure(images, ()).parts
            metrics: dict[str, Metric] = {}
            for name, part in statistics.items():
                metrics[f"watch/{name}"] = mean(part)
            intact = images.isfinite().flatten(1).all(1).cpu()
            embeddings = encode(images).cpu()[intact]
            metrics[f"watch/{self.diversity.name}"] = dispersion(embeddings, group.cpu()[intact])
            return metrics

        return observe
