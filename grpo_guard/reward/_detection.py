"""What GenEval needs of the models that look at an image: objects and their colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from grpo_guard.schema import record
from grpo_guard.world.detection import Detection

Detect = Callable[[Float[Tensor, "B 3 H W"]], Sequence[Sequence[Detection]]]
"""Images in [0, 1] -> the objects in each of them."""
ClassifyColors = Callable[
    [Float[Tensor, "B 3 H W"], Sequence[tuple[int, Detection]]], Sequence[str]
]
"""(images in [0, 1], pairs of an image's row and an object in it) -> the colour of each object."""


@runtime_checkable
class Detector(Protocol):
    """Detects the objects of an image, with their colours if it can tell them."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of the network weights that `load` puts on the device."""

    def load(self, device: torch.device) -> Detect:
        """Load the weights and return the function that detects objects."""


@runtime_checkable
class LimitedDetector(Protocol):
    """A detector that knows only some objects; GenEval does not accept prompts about others."""

    def knows(self, name: str) -> bool:
        """Return whether objects of this name can be detected."""


@runtime_checkable
class LimitedPalette(Protocol):
    """A detector that reports only some colours; GenEval does not accept prompts about others."""

    def knows_color(self, color: str) -> bool:
        """Return whether objects of this colour can be reported."""


@runtime_checkable
class ColorClassifier(Protocol):
    """Classifies the colour of a detected object."""

    def knows(self, color: str) -> bool:
        """Return whether this colour is one of the classes."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of the network weights that `load` puts on the device."""

    def load(self, device: torch.device) -> ClassifyColors:
        """Load the weights and return the function that classifies colours."""


@record
class Segment(Detection):
    """A detected object with an outline. Its box has whole px."""

    mask: Bool[Tensor, "h w"]
    """True for the pixels of the box that belong to the object."""
