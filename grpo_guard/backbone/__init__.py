"""Backbones: a trainable velocity field with its prompt encoders, schedule and decoder."""

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
    """Precision that the policy computes in."""
    shape: tuple[int, ...]
    """Shape of one latent."""

    def times(self, steps: int) -> Float[Tensor, " T1"]:
        """Return the schedule from 1 (noise) down to 0 (image): steps + 1 times."""

    def encode(self, texts: Sequence[str]) -> Condition:
        """Encode texts, one row per text."""

    def decode(self, latents: Float[Tensor, "B ..."]) -> Float[Tensor, "B 3 H W"]:
        """Decode latents to images in [0, 1]."""

    def reference(self) -> Velocity:
        """Return the policy as it was loaded, which training does not change.

        Call this before training begins.
        """

    def unguided(self) -> Velocity:
        """Return the policy without classifier-free guidance; it shares the policy's weights."""

    def at(self, resolution: int) -> Model:
        """Return the model at another resolution; it shares the policy's weights.

        Raises ConfigError if the model cannot draw it.
        """

    def widen(self) -> None:
        """Let the policy compute in float32 from now on; its weights keep their values."""

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write trained weights in the format that diffusers loads.

        `weights` are whole tensors by their names in the policy.
        """

    def restore(self, folder: Path) -> None:
        """Load weights that `save` wrote; raises ConfigError if they do not fit."""


@runtime_checkable
class Backbone(Protocol):
    """The recipe of a model."""

    def load(self, device: torch.device) -> Model:
        """Load the model; raises ConfigError, with key and remedy, if weights are missing."""
