"""The noise floor: what rounding does to log-ratios, against the clip range.

A policy that has not moved replays to the same velocities, so its floor can be 0 in any dtype. Once
its weights have moved, half precision rounds old and new velocities differently, and the difference
of the two roundings enters the ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from grpo_guard import rng
from grpo_guard.clipping import Clipping, Limits
from grpo_guard.old_policy import OldMeans, OldPolicy, replay_against
from grpo_guard.ratio import log_ratio_norm, log_ratio_raw
from grpo_guard.rollout import measure_drift
from grpo_guard.schema import record
from grpo_guard.types import Drift, Rows, Trajectory, Velocity, concatenate, map_tensors

WORRYING_SHARE = 0.1
"""A floor above this share of the clip range is worth a warning: the clip then acts on noise."""
WORRYING_SHARE_OF_MOVE = 0.25
"""The same for a 99th percentile of rounding relative to the standard deviation of the change."""


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
    range_key: str
    """Setting of the objective that widens the clip range."""

    @property
    def worst(self) -> int:
        """Row of the step whose floor is nearest to its clip range."""
        return int(self.share.argmax())


@record
class Probe:
    """Rows that are replayed to see what rounding does to them."""

    policy: Velocity
    """The policy that drew their trajectory."""
    trajectory: Trajectory
    """Where the rows come from."""
    rows: Rows
    """The rows, with old means if they are stored."""
    old: OldMeans
    """What is known of the old policy's means."""
    microbatch: int
    """Rows that are forwarded at a time."""
    with_gradient: bool = False
    """Whether rows are forwarded with a gradient, as in an update. A compiled policy has other code
    for that than for a rollout, which may round otherwise."""


def make_probe(
    old_policy: OldPolicy, policy: Velocity, trajectory: Trajectory, rows: Rows, microbatch: int
) -> Probe:
    """Make a probe of rows whose old policy is the one that `policy` is now."""
    old = old_policy(policy, trajectory, microbatch)
    return Probe(
        policy=policy,
        trajectory=trajectory,
        rows=old.store(rows),
        old=old,
        microbatch=microbatch,
    )


def measure_noise_floor(probe: Probe, clipping: Clipping, limits: Limits) -> NoiseFloor:
    """Measure the floor by replaying rows under the policy that sampled them."""
    rows = probe.rows
    drift = replay_drift(probe)
    low, high = limits
    narrower = torch.minimum(-low, high).cpu()
    steps = tuple(int(step) for step in rows.step.unique())
    at = [rows.step == step for step in steps]
    own, raw, norm = (
        torch.stack([_quantiles(log_ratio(drift)[rows_at]) for rows_at in at])
        for log_ratio in (clipping.ratio, log_ratio_raw, log_ratio_norm)
    )
    return NoiseFloor(
        steps=steps,
        raw=raw,
        norm=norm,
        share=own[:, 1] / narrower[list(steps)],
        range_key=clipping.range_key,
    )


def replay_drift(probe: Probe) -> Drift:
    """Return the drift that replaying the rows shows."""
    parts = []
    with torch.set_grad_enabled(probe.with_gradient):
        for part in probe.rows.split(probe.microbatch):
            step, rows = replay_against(probe.old, probe.policy, probe.trajectory, part)
            drift = measure_drift(step, probe.trajectory, rows)
            # Frees what a backward would need.
            parts.append(map_tensors(drift, Tensor.detach))
    return concatenate(parts)


@record
class Rounding:
    """What rounding adds to the log-ratios after an optimizer step, by denoising step."""

    steps: tuple[int, ...]
    """Numbers of the trained steps."""
    error: Float[Tensor, " T"]
    """99th percentile of |log-ratio as the run computes it - exact log-ratio|."""
    spread: Float[Tensor, " T"]
    """Standard deviation of the exact log-ratio: how far the step has moved it."""
    limit: Float[Tensor, " T"]
    """The narrower side of the clip range."""
    range_key: str
    """Setting of the objective that widens the clip range."""

    @property
    def worst(self) -> int:
        """Row of the step at which rounding is largest relative to the clip range."""
        return int((self.error / self.limit).argmax())

    @property
    def share(self) -> float:
        """What rounding adds at that step, over the clip range."""
        return float(self.error[self.worst] / self.limit[self.worst])

    @property
    def is_small(self) -> bool:
        """Whether rounding is small relative to the clip range, or to how far the step moves rows.

        In the latter case it hardly changes which rows are clipped.
        """
        beside_range = self.error <= WORRYING_SHARE * self.limit
        beside_move = self.error <= WORRYING_SHARE_OF_MOVE * self.spread
        return bool((beside_range | beside_move).all())


def measure_rounding(
    probe: Probe,
    make_exact: Callable[[Probe], Probe],
    moved: Callable[[], AbstractContextManager[None]],
    clipping: Clipping,
    limits: Limits,
) -> Rounding:
    """Compare the log-ratios after a step, as the run computes them, with exact ones.

    `moved` is a context in which the weights have made the step. `make_exact` returns a probe of
    the same rows that is hardly rounded; it may change the policy.
    """
    with moved():
        own = clipping.ratio(replay_drift(probe))
    exact_probe = make_exact(probe)
    with moved():
        exact = clipping.ratio(replay_drift(exact_probe))
    rows = probe.rows
    steps = tuple(int(step) for step in rows.step.unique())
    at = [(rows.step == step).cpu() for step in steps]
    error = (own - exact).double().cpu()
    low, high = limits
    return Rounding(
        steps=steps,
        error=torch.stack([_quantiles(error[rows_at])[1] for rows_at in at]),
        spread=torch.stack([exact.double().cpu()[rows_at].std() for rows_at in at]),
        limit=torch.minimum(-low, high).cpu()[list(steps)],
        range_key=clipping.range_key,
    )


def replay_in(old_policy: OldPolicy, probe: Probe) -> Probe:
    """Return a probe of the same rows under another choice of the old policy."""
    rows = replace(probe.rows, old_mean=None)
    return make_probe(old_policy, probe.policy, probe.trajectory, rows, probe.microbatch)


@contextmanager
def nudge(parameters: Sequence[nn.Parameter], size: float) -> Iterator[None]:
    """Move every weight by `size`, up or down at random as Adam's first step does; then undo it."""
    before = [p.detach().clone() for p in parameters]
    try:
        with torch.no_grad():
            for number, p in enumerate(parameters):
                p.add_(size * rng.normal(p.shape, [("nudge", number)], p.device)[0].sign())
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, before, strict=True):
                p.copy_(value)


def describe_rounding(rounding: Rounding, dtype: str, size: float, old_policy: OldPolicy) -> str:
    """Say in one line whether the clip range means anything in a dtype, after a step of `size`."""
    worst = rounding.worst
    measured = (
        f"after a step of {size:g}, {dtype} changes the log-ratio by"
        f" {float(rounding.error[worst]):.1e} at step {rounding.steps[worst]}, the worst step"
        f" (99th percentile): {rounding.share:.2g} times the"
        f" clip range. The step itself moves it by {float(rounding.spread[worst]):.1e}"
    )
    if rounding.is_small:
        return f"{measured}. The clip range means something"
    tangent = "" if old_policy.weight_copies > 0 else "old_policy=tangent, "
    remedies = f"{tangent}backbone.dtype=float32, or a larger clipping.{rounding.range_key}"
    return f"{measured}. The clip acts on rounding; set {remedies}"


def round_latents(trajectory: Trajectory, dtype: torch.dtype) -> Trajectory:
    """Return the trajectory as it would be if its latents had been stored in `dtype`."""
    return replace(trajectory, x=trajectory.x.to(dtype).float())


def describe_floor(floor: NoiseFloor, rows: Rows) -> str:
    """Say in one line whether the clip range lies above the floor and, if not, what to change."""
    share = float(floor.share[floor.worst])
    step = floor.steps[floor.worst]
    if share == 0:
        return "the clip range is above the noise floor, which is exactly 0 at this batch shape"
    where = f"of the clip range at step {step}, the worst step (99th percentile)"
    if share <= WORRYING_SHARE:
        return f"the clip range is above the noise floor, which is {share:.2g} {where}"
    remedies = ", or ".join(list_remedies(floor, rows))
    return f"the noise floor is {share:.2g} {where}: the clip acts on noise; set {remedies}"


def list_remedies(floor: NoiseFloor, rows: Rows) -> tuple[str, ...]:
    """List the settings that lower the floor, or rise above it, and are not in use yet."""
    replay = ("old_policy=replay",) if rows.old_mean is None else ()
    return (*replay, "backbone.dtype=float32", f"a larger clipping.{floor.range_key}")


def _quantiles(log_ratio: Float[Tensor, " R"]) -> Float[Tensor, " 2"]:
    at = torch.tensor([0.5, 0.99], dtype=torch.float64)
    return torch.quantile(log_ratio.abs().double().cpu(), at)
