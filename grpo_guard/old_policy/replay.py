"""The old policy is recomputed in the microbatches of training."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from grpo_guard.rollout import replay_steps
from grpo_guard.schema import component
from grpo_guard.types import Rows, Trajectory, Velocity


@component
class ReplayedOldPolicy:
    """Recompute the old policy's means before the first update, and store one for each row.

    It suits policies in float16 or bfloat16, whose velocity depends on the shape of the batch: the
    difference between rollout and training then cancels out of the ratio (docs/adr/0014).
    """

    extra_forwards: ClassVar[int] = 1
    stores_means: ClassVar[bool] = True

    def __call__(
        self, policy: Velocity, trajectory: Trajectory, rows: Rows, microbatch: int
    ) -> Rows:
        """Return the rows with their old means."""
        return store_old_means(policy, trajectory, rows, microbatch)


@torch.no_grad()
def store_old_means(policy: Velocity, trajectory: Trajectory, rows: Rows, microbatch: int) -> Rows:
    """Return rows with the means of a policy, computed `microbatch` rows at a time."""
    # The microbatches are written into one tensor: joining them would hold all means twice.
    old_mean = trajectory.x.new_empty(len(rows), *trajectory.x.shape[2:])
    parts = zip(rows.split(microbatch), old_mean.split(microbatch), strict=True)
    for part, place in parts:
        place.copy_(replay_steps(policy, trajectory, part).mean)
    return dataclasses.replace(rows, old_mean=old_mean)
