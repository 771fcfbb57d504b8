"""The detector of the synthetic world's exact checker, for the GenEval reward."""

from __future__ import annotations

from typing import ClassVar

import torch

from grpo_guard.reward._detection import Detect
from grpo_guard.schema import component
from grpo_guard.world.detection import detect
from grpo_guard.world.scene import SHAPE_COLORS, THINGS


@component
class WorldDetector:
    """Detect coloured shapes and words by templates; it needs neither weights nor a device."""

    def knows(self, name: str) -> bool:
        """Return whether objects of this name, a shape or "word", occur in the synthetic world."""
        return name in THINGS

    def knows_color(self, color: str) -> bool:
        """Return whether shapes of this colour occur in the synthetic world."""
        return color in SHAPE_COLORS

    weight_bytes: ClassVar[int] = 0
    """Always 0: there are no weights."""

    def load(self, device: torch.device) -> Detect:
        """Return the detector of the exact checker."""
        return detect
