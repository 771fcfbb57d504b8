"""The synthetic world's exact checker as GenEval's detector."""

from __future__ import annotations

import torch

from grpo_guard.reward.geneval import Detect
from grpo_guard.types import component
from grpo_guard.world.checker import detect
from grpo_guard.world.scene import NAMES


@component
class WorldDetector:
    """Finds coloured shapes by template; needs neither weights nor device."""

    def knows(self, name: str) -> bool:
        """Whether it is a shape, or a word, of the synthetic world."""
        return name in NAMES

    def load(self, device: torch.device) -> Detect:
        """The checker's own detector."""
        return detect
