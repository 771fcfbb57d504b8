"""A velocity field with what it needs to be asked for an image: prompt encoding, schedule, decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from grpo_guard.types import Condition, Velocity


@runtime_checkable
class Model(Protocol):
    """A loaded backbone: frozen parts around one trainable policy."""

    policy: nn.Module
    """(latents "R ...", times "R" in [0, 1], Condition) -> velocities "R ..."."""
    dtype: torch.dtype
    """What the policy computes in."""
    shape: tuple[int, ...]
    """Of one latent."""

    def times(self, steps: int) -> Float[Tensor, " T1"]:
        """The schedule from 1 (noise) down to 0 (image): steps + 1 times."""

    def encode(self, texts: Sequence[str]) -> Condition:
        """One row per text."""

    def decode(self, latents: Float[Tensor, "B ..."]) -> Float[Tensor, "B 3 H W"]:
        """Images in [0, 1]."""

    def reference(self) -> Velocity:
        """The policy as it was loaded, frozen, whatever training does to it; to be asked for before training begins."""

    def unguided(self) -> Velocity:
        """The policy as it is now, without classifier-free guidance."""

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write what was trained, as diffusers reads it: whole tensors by the policy's names."""

    def restore(self, folder: Path) -> None:
        """Read what `save` wrote; raises ConfigError where it does not fit."""


@runtime_checkable
class Backbone(Protocol):
    """The recipe of a model."""

    def load(self, device: torch.device) -> Model:
        """Load weights; raises ConfigError, naming the key and the remedy, where they are missing."""
