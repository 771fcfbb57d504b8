"""The noise floor: log-ratios of a policy that has not moved, against the clip range."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.clipping import Clipping
from grpo_guard.gaussian import drift
from grpo_guard.ratio import log_ratio_norm, log_ratio_raw
from grpo_guard.rollout import noise, replay_steps
from grpo_guard.types import Drift, Rows, Trajectory, Velocity, concatenate, record

MARGIN = 0.1
"""A floor above this share of the clip range is worth a warning: the clip then acts on noise."""


@record
class Floor:
    """Quantiles of |log-ratio| over the rows of each trained step: columns are the median and the 99th percentile.

    `share` is the 99th percentile of the optimised |log-ratio| over the narrower side of its step's clip range.
    """

    steps: tuple[int, ...]
    raw: Float[Tensor, "T 2"]
    norm: Float[Tensor, "T 2"]
    share: Float[Tensor, " T"]

    @property
    def worst(self) -> int:
        """The row of the step whose floor is nearest to its clip range."""
        return int(self.share.argmax())


def measure(
    policy: Velocity, trajectory: Trajectory, rows: Rows, clipping: Clipping, microbatch: int
) -> Floor:
    """The floor of a policy that is the one that sampled, replayed `microbatch` rows at a time."""
    moved = still(policy, trajectory, rows, microbatch)
    low, high = clipping.bounds(moved.dimensions, len(trajectory.schedule))
    reach = torch.minimum(-low, high)
    steps = tuple(int(step) for step in rows.step.unique())
    at = [rows.step == step for step in steps]
    optimised = torch.stack([_quantiles(clipping.ratio(moved)[rows_at])[1] for rows_at in at])
    return Floor(
        steps=steps,
        raw=torch.stack([_quantiles(log_ratio_raw(moved)[rows_at]) for rows_at in at]),
        norm=torch.stack([_quantiles(log_ratio_norm(moved)[rows_at]) for rows_at in at]),
        share=optimised / reach[list(steps)],
    )


@torch.no_grad()
def still(policy: Velocity, trajectory: Trajectory, rows: Rows, microbatch: int) -> Drift:
    """The drift that replaying rows shows although nothing was trained."""
    return concatenate([_drift(policy, trajectory, part) for part in rows.split(microbatch)])


def stored(trajectory: Trajectory, dtype: torch.dtype) -> Trajectory:
    """A trajectory as it would be had its latents been kept in another dtype."""
    return dataclasses.replace(trajectory, x=trajectory.x.to(dtype).float())


def verdict(floor: Floor, remedies: Sequence[str]) -> str:
    """One line: whether the clip range is above the floor and, if it is not, what to change."""
    share, step = float(floor.share[floor.worst]), floor.steps[floor.worst]
    if share == 0:
        return "the clip range is above the noise floor, which is exactly 0 at this batch shape"
    where = f"of the clip range at step {step}, its worst (99th percentile)"
    if share <= MARGIN:
        return f"the clip range is above the noise floor, which is {share:.2g} {where}"
    return f"the noise floor is {share:.2g} {where}: the clip acts on noise; set {', or '.join(remedies)}"


def _drift(policy: Velocity, trajectory: Trajectory, rows: Rows) -> Drift:
    batch, x_next = trajectory.batch, trajectory.x[rows.sample, rows.step + 1]
    eps = noise(trajectory.address, batch.sample[rows.sample], rows.step, x_next.shape[1:])
    return drift(replay_steps(policy, trajectory, rows), x_next, eps, rows.old_mean)


def _quantiles(log_ratio: Float[Tensor, " R"]) -> Float[Tensor, " 2"]:
    return torch.quantile(
        log_ratio.abs().double().cpu(), torch.tensor([0.5, 0.99], dtype=torch.float64)
    )
