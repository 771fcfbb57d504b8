"""Penalties that hold the policy near its reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from grpo_guard.backbone import Model
from grpo_guard.types import Condition, Schedule, Step

Penalize = Callable[[Step, Schedule, Float[Tensor, "R ..."], Condition], Float[Tensor, " R"]]
"""(the policy's steps, their schedule rows, latents, condition) -> the penalty of each row."""


@runtime_checkable
class Kl(Protocol):
    """Makes the penalty that is added to the loss of each row."""

    @property
    def reference_forwards(self) -> int:
        """Forwards of the reference, without gradients, for each microbatch of an update.

        With 1 or more, a reference must be there: a frozen copy of a policy without adapters.
        """

    def load(self, model: Model) -> Penalize:
        """Take the model as it is now for the reference, and return the penalty."""
