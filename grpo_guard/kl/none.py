"""No penalty, as in the paper's comparison."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.backbone import Model
from grpo_guard.kl import Penalize
from grpo_guard.schema import component
from grpo_guard.types import Rows, Step, Trajectory


@component
class NoKl:
    """Add no penalty; no reference is made."""

    reference_forwards: ClassVar[int] = 0

    def load(self, model: Model) -> Penalize:
        """Return a penalty of 0; the model is not used."""
        return _NoPenalty()


class _NoPenalty:
    """Gives 0 for each row."""

    reference = None

    def __call__(self, step: Step, trajectory: Trajectory, rows: Rows) -> Float[Tensor, " R"]:
        return torch.zeros_like(step.std)
