"""Penalties that hold the policy near its reference."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from grpo_guard.backbone import Model
from grpo_guard.types import Rows, Step, Trajectory, Velocity


@runtime_checkable
class Penalize(Protocol):
    """A penalty that is added to the loss of each row."""

    @property
    def reference(self) -> Velocity | None:
        """The policy that the penalty compares with; None: there is no penalty."""

    def __call__(self, step: Step, trajectory: Trajectory, rows: Rows) -> Float[Tensor, " R"]:
        """Return the penalty of the policy's steps, which replay these rows."""


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
