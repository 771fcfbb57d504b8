"""How far the policy may leave its reference: a penalty added to the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from grpo_guard.backbone import Model
from grpo_guard.types import Condition, Schedule, Step

Penalize = Callable[[Step, Schedule, Float[Tensor, "R ..."], Condition], Float[Tensor, " R"]]
"""(the policy's steps, their schedule rows, latents, condition) -> what is added to each row's loss."""


@runtime_checkable
class Kl(Protocol):
    """The recipe of a penalty."""

    def load(self, model: Model) -> Penalize:
        """Take the reference from the model as it is now."""
