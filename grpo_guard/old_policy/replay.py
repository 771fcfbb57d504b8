"""The old policy is recomputed, as training computes the new one."""

from __future__ import annotations

import dataclasses

import torch

from grpo_guard.rollout import replay_steps
from grpo_guard.types import Rows, Trajectory, Velocity, component


@component
class Replay:
    """One more forward of all rows, in the microbatches of training; keeps a mean (R, ...) per row.

    For policies in float16 or bfloat16, whose velocity depends on the batch's shape: what differs between rollout and
    training then cancels out of the ratio.
    """

    def __call__(
        self, policy: Velocity, trajectory: Trajectory, rows: Rows, microbatch: int
    ) -> Rows:
        """The rows with their old means."""
        with torch.no_grad():
            means = [replay_steps(policy, trajectory, part).mean for part in rows.split(microbatch)]
        return dataclasses.replace(rows, old_mean=torch.cat(means))
