"""The old policy is recomputed in the microbatches of training."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, final

import torch

from grpo_guard.old_policy import OldMeans
from grpo_guard.rollout import replay_steps
from grpo_guard.schema import component
from grpo_guard.types import Rows, Trajectory, Velocity


@component
class ReplayedOldPolicy:
    """Recompute the old policy's means before the first update, and store one for each row.

    It suits policies in float16 or bfloat16, whose velocity depends on the shape of the batch: the
    difference between rollout and training then cancels out of the ratio (docs/adr/0014).
    """

    stores_means: ClassVar[bool] = True
    weight_copies: ClassVar[int] = 0

    def extra_forwards(self, updates: int) -> float:
        """Return 1: each row is forwarded once more."""
        return 1

    def __call__(self, policy: Velocity, trajectory: Trajectory, microbatch: int) -> OldMeans:
        """Return means that are computed in advance."""
        return StoredMeans(policy, trajectory, microbatch)


@final
class StoredMeans(OldMeans):
    """Old means that are computed before the first update, and kept."""

    def __init__(self, policy: Velocity, trajectory: Trajectory, microbatch: int) -> None:
        self.policy = policy
        self.trajectory = trajectory
        self.microbatch = microbatch

    @torch.no_grad()
    def store(self, rows: Rows) -> Rows:
        """Return the rows with the means of the policy as it is now."""
        # The microbatches are written into one tensor: joining them would hold all means twice.
        old_mean = self.trajectory.x.new_empty(len(rows), *self.trajectory.x.shape[2:])
        parts = zip(rows.split(self.microbatch), old_mean.split(self.microbatch), strict=True)
        for part, place in parts:
            place.copy_(replay_steps(self.policy, self.trajectory, part).mean)
        return dataclasses.replace(rows, old_mean=old_mean)
