"""The synthetic world's exact checker as GenEval's detector."""

from __future__ import annotations

import torch

from grpo_guard.reward.geneval import Detect
from grpo_guard.types import component
from grpo_guard.world.checker import detect


@component
class WorldDetector:
    """Finds coloured shapes by template; needs neither weights nor device."""

    def load(self, device: torch.device) -> Detect:
        """The checker's own detector."""
        return detect
