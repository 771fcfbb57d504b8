"""The old policy: the one that drew the samples, with which ratios compare the new one."""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from grpo_guard.rollout import replay_steps
from grpo_guard.types import Rows, Step, Trajectory, Velocity


class OldMeans:
    """What is known of the old policy's means while the new policy moves away from it.

    This one knows nothing: the means are those that the rollout's samples imply.
    """

    def store(self, rows: Rows) -> Rows:
        """Return rows with the old means, if they are computed in advance.

        Call it before the first update, while the policy is still the old one.
        """
        return rows

    def measure_change(self, rows: Rows) -> Float[Tensor, "R ..."] | None:
        """Return how far the policy's means have moved; None if their difference says it.

        Call it before the rows are replayed, so that both do not need memory at the same time.
        """
        return None


@runtime_checkable
class OldPolicy(Protocol):
    """Says how the old policy's mean of each training row is known."""

    @property
    def stores_means(self) -> bool:
        """Whether a mean, as large as a latent, is kept for each training row."""

    @property
    def weight_copies(self) -> int:
        """Copies of the trained weights that are held during the updates.

        Above 0, every process must have the whole policy.
        """

    def extra_forwards(self, updates: int) -> float:
        """Forwards without gradients that a training row takes beside the update's own.

        It is the mean over all rows of an iteration of so many updates.
        """

    def __call__(self, policy: Velocity, trajectory: Trajectory, microbatch: int) -> OldMeans:
        """Return what is known of the means of `policy`, as it is now, along a trajectory.

        The policy computes `microbatch` rows at a time.
        """


def replay_against(
    old: OldMeans, policy: Velocity, trajectory: Trajectory, rows: Rows
) -> tuple[Step, Rows]:
    """Return the policy's Gaussian for each row, and the rows with what is known of old means."""
    change = old.measure_change(rows)
    step = replay_steps(policy, trajectory, rows)
    if change is not None:
        rows = dataclasses.replace(rows, old_mean=step.mean.detach() - change)
    return step, rows
