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
        with torch.no_grad():
            means = [replay_steps(policy, trajectory, part).mean for part in rows.split(microbatch)]
        return dataclasses.replace(rows, old_mean=torch.cat(means))
