"""The noise floor: what rounding does to log-ratios, against the clip range.

A policy that has not moved replays to the same velocities, so its floor can be 0 in any dtype. Once
its weights have moved, half precision rounds old and new velocities differently, and the difference
of the two roundings enters the ratio.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from grpo_guard import rng
from grpo_guard.clipping import Clipping, Limits
from grpo_guard.old_policy.replay import store_old_means
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


@record
class Rounding:
    """What a policy's dtype adds to its log-ratios after a step, by trained step."""

    steps: tuple[int, ...]
    """Numbers of the trained steps."""
    error: Float[Tensor, " T"]
    """99th percentile of |log-ratio in the policy's dtype - log-ratio in float32|."""
    spread: Float[Tensor, " T"]
    """Standard deviation of the log-ratio in float32: how far the step has moved it."""
    limit: Float[Tensor, " T"]
    """The narrower side of the clip range."""

    @property
    def worst(self) -> int:
        """Row of the step at which rounding is largest beside the clip range."""
        return int((self.error / self.limit).argmax())


def measure_rounding(
    policy: Velocity,
    widen: Callable[[], None],
    moved: Callable[[], AbstractContextManager[None]],
    trajectory: Trajectory,
    rows: Rows,
    clipping: Clipping,
    limits: Limits,
    microbatch: int,
) -> Rounding:
    """Compare the log-ratios after a step in the policy's dtype with those in float32.

    `moved` is a context in which the weights have made the step. `widen` lets the policy compute in
    float32 from then on.
    """
    with moved():
        own = clipping.ratio(replay_drift(policy, trajectory, rows, microbatch))
    widen()
    rows = store_old_means(policy, trajectory, rows, microbatch)
    with moved():
        exact = clipping.ratio(replay_drift(policy, trajectory, rows, microbatch))
    steps = tuple(int(step) for step in rows.step.unique())
    at = [(rows.step == step).cpu() for step in steps]
    error = (own - exact).double().cpu()
    low, high = limits
    return Rounding(
        steps=steps,
        error=torch.stack([_quantiles(error[rows_at])[1] for rows_at in at]),
        spread=torch.stack([exact.double().cpu()[rows_at].std() for rows_at in at]),
        limit=torch.minimum(-low, high)[list(steps)],
    )


@contextmanager
def nudge(parameters: Sequence[nn.Parameter], size: float) -> Iterator[None]:
    """Move every weight by `size`, up or down at random as Adam's first step does; then undo it."""
    before = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for number, p in enumerate(parameters):
            p.add_(size * rng.normal(p.shape, [("nudge", number)], p.device)[0].sign())
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, before, strict=True):
                p.copy_(value)


def describe_rounding(rounding: Rounding, dtype: str, size: float) -> str:
    """Say in one line whether the clip range means anything in a dtype, after a step of `size`."""
    worst = rounding.worst
    error = float(rounding.error[worst])
    share = error / float(rounding.limit[worst])
    measured = (
        f"after a step of {size:g}, {dtype} changes the log-ratio by {error:.1e} at step"
        f" {rounding.steps[worst]}, the worst step (99th percentile): {share:.2g} times the"
        f" clip range. The step itself moves it by {float(rounding.spread[worst]):.1e}"
    )
    if share <= WORRYING_SHARE:
        return f"{measured}. The clip range means something"
    return (
        f"{measured}. The clip acts on rounding; set backbone.dtype=float32, or a wider"
        " clipping.high"
    )


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
