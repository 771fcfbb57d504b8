"""No penalty: the paper's comparison."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.backbone import Model
from grpo_guard.kl import Penalize
from grpo_guard.types import Condition, Schedule, Step, component


@component
class NoKl:
    """Adds nothing; there is no reference and no forward of one."""

    def load(self, model: Model) -> Penalize:
        """Needs nothing of the model."""
        return free


def free(
    step: Step, steps: Schedule, x: Float[Tensor, "R ..."], condition: Condition
) -> Float[Tensor, " R"]:
    """0."""
    return torch.zeros_like(step.std)
