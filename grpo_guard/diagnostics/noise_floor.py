"""The noise floor: log-ratios of a policy that has not moved, against the clip range."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.clipping import Clipping, Limits
from grpo_guard.ratio import log_ratio_norm, log_ratio_raw
from grpo_guard.rollout import measure_drift, replay_steps
from grpo_guard.schema import record
from grpo_guard.types import Drift, Rows, Trajectory, Velocity, concatenate

WORRYING_SHARE = 0.1
"""A floor above this share of the clip range is worth a warning: the clip then acts on noise."""


@record
class NoiseFloor:
    """Median and 99th percentile of |log-ratio| over the rows of each trained step."""

    steps: tuple[int, ...]
    """Numbers of the trained steps."""
    raw: Float[Tensor, "T 2"]
    """Quantiles of the raw log-ratio."""
    norm: Float[Tensor, "T 2"]
    """Quantiles of RatioNorm's log-ratio."""
    share: Float[Tensor, " T"]
    """99th percentile of the optimised log-ratio over the narrower side of the clip range."""

    @property
    def worst(self) -> int:
        """Row of the step whose floor is nearest to its clip range."""
        return int(self.share.argmax())


def measure_noise_floor(
    policy: Velocity,
    trajectory: Trajectory,
    rows: Rows,
    clipping: Clipping,
    limits: Limits,
    microbatch: int,
) -> NoiseFloor:
    """Measure the floor by replaying rows under the policy that sampled them.

    `microbatch` rows are forwarded at a time.
    """
    drift = replay_drift(policy, trajectory, rows, microbatch)
    low, high = limits
    narrower = torch.minimum(-low, high)
    steps = tuple(int(step) for step in rows.step.unique())
    at = [rows.step == step for step in steps]
    own, raw, norm = (
        torch.stack([_quantiles(log_ratio(drift)[rows_at]) for rows_at in at])
        for log_ratio in (clipping.ratio, log_ratio_raw, log_ratio_norm)
    )
    return NoiseFloor(steps=steps, raw=raw, norm=norm, share=own[:, 1] / narrower[list(steps)])


@torch.no_grad()
def replay_drift(policy: Velocity, trajectory: Trajectory, rows: Rows, microbatch: int) -> Drift:
    """Return the drift that replaying shows although nothing was trained."""
    drifts = [
        measure_drift(replay_steps(policy, trajectory, part), trajectory, part)
        for part in rows.split(microbatch)
    ]
    return concatenate(drifts)


def round_latents(trajectory: Trajectory, dtype: torch.dtype) -> Trajectory:
    """Return the trajectory as it would be if its latents had been stored in `dtype`."""
    return dataclasses.replace(trajectory, x=trajectory.x.to(dtype).float())


def describe_floor(floor: NoiseFloor, rows: Rows) -> str:
    """Say in one line whether the clip range lies above the floor and, if not, what to change."""
    share = float(floor.share[floor.worst])
    step = floor.steps[floor.worst]
    if share == 0:
        return "the clip range is above the noise floor, which is exactly 0 at this batch shape"
    where = f"of the clip range at step {step}, the worst step (99th percentile)"
    if share <= WORRYING_SHARE:
        return f"the clip range is above the noise floor, which is {share:.2g} {where}"
    remedies = ", or ".join(list_remedies(rows))
    return f"the noise floor is {share:.2g} {where}: the clip acts on noise; set {remedies}"


def list_remedies(rows: Rows) -> tuple[str, ...]:
    """List the settings that lower the floor, or rise above it, and are not in use yet."""
    replay = ("old_policy=replay",) if rows.old_mean is None else ()
    return (*replay, "backbone.dtype=float32", "a wider clipping.high")


def _quantiles(log_ratio: Float[Tensor, " R"]) -> Float[Tensor, " 2"]:
    at = torch.tensor([0.5, 0.99], dtype=torch.float64)
    return torch.quantile(log_ratio.abs().double().cpu(), at)
