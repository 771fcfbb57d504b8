"""Sampling and replay: one function proposes every step, whoever asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grpo_guard import rng
from grpo_guard.data import shuffled_places
from grpo_guard.final_steps import FinalSteps
from grpo_guard.gaussian import advance, trailing
from grpo_guard.types import Batch, Condition, Rows, Schedule, Step, Trajectory, Velocity


def propose(
    policy: Velocity, steps: Schedule, x: Float[Tensor, "R ..."], condition: Condition
) -> Step:
    """The policy's Gaussian for each row's step, from latents x at times `steps.t`; the only call of a policy."""
    v = policy(x, steps.t, condition).float()
    mean = trailing(steps.x_gain, x) * x + trailing(steps.v_gain, v) * v
    return Step(mean=mean, std=steps.std, gain=steps.v_gain.abs())


@torch.no_grad()
def rollout(
    policy: Velocity,
    schedule: Schedule,
    batch: Batch,
    condition: Condition,
    shape: Sequence[int],
    *,
    address: tuple[int, int],
    microbatch: int,
    final_steps: FinalSteps,
    ended: Callable[[Float[Tensor, "b ..."]], None] = lambda latents: None,
) -> Trajectory:
    """Follow the schedule from noise to image for every sample of the batch, `microbatch` samples at a time.

    `shape` is one latent's, `condition` has a row per prompt of the batch, `address` is (seed, iteration); `ended` is
    given the latents of every microbatch at time 0, as soon as they are there.
    """
    walked, paths, ends = final_steps.walked(schedule), [], []
    for i in torch.arange(len(batch.sample), device=batch.sample.device).split(microbatch):
        asked = condition[batch.group[i]]
        path = _walk(policy, walked, batch.sample[i], asked, shape, address)
        ends.append(final_steps.finish(policy, path[-1], walked.t_next[-1], asked))
        ended(ends[-1])
        paths.append(torch.stack(path, dim=1))
    return Trajectory(
        x=torch.cat(paths),
        sample=torch.cat(ends),
        batch=batch,
        condition=condition,
        schedule=schedule,
        address=address,
    )


def _walk(
    policy: Velocity,
    schedule: Schedule,
    samples: Int[Tensor, " B"],
    condition: Condition,
    shape: Sequence[int],
    address: tuple[int, int],
) -> list[Float[Tensor, "B ..."]]:
    """The latents of some samples at every time of the schedule."""
    path = [noise(address, samples, torch.full_like(samples, rng.START), shape)]
    for step in range(len(schedule)):
        at = torch.full_like(samples, step)
        proposed = propose(policy, schedule[at], path[-1], condition)
        path.append(
            advance(proposed, noise(address, samples, at, shape))
            if schedule.std[step] > 0
            else proposed.mean
        )
    return path


def replay_steps(policy: Velocity, trajectory: Trajectory, rows: Rows) -> Step:
    """The policy's Gaussian for each row, from the latents that the rollout stored."""
    x, group = trajectory.x[rows.sample, rows.step], trajectory.batch.group[rows.sample]
    return propose(policy, trajectory.schedule[rows.step], x, trajectory.condition[group])


def noise(
    address: tuple[int, int],
    samples: Int[Tensor, " R"],
    steps: Int[Tensor, " R"],
    shape: Sequence[int],
) -> Float[Tensor, "R ..."]:
    """The noise of each (sample, step), regenerated from its address."""
    rows = zip(samples.tolist(), steps.tolist(), strict=True)
    return rng.normal(shape, [(*address, sample, step) for sample, step in rows], samples.device)


def transitions(
    trajectory: Trajectory, advantages: Float[Tensor, " B"], steps_per_sample: int | None = None
) -> Rows:
    """Training rows of the trained steps, sample by sample; samples of no advantage still count, as zeros.

    With `steps_per_sample`, each sample gives that many of its steps, chosen at random so that every step is trained
    equally often (to within one).
    """
    trained = trajectory.schedule.trained.nonzero().flatten().tolist()
    count, samples = len(advantages), trajectory.batch.sample.tolist()
    take = len(trained) if steps_per_sample is None else steps_per_sample
    order = rng.permutation(len(trained), *trajectory.address, "steps")
    turns = rng.permutation(trajectory.batch.total, *trajectory.address, "turns")
    picks = [
        [trained[order[(turns[i] * take + k) % len(trained)]] for k in range(take)] for i in samples
    ]
    device = advantages.device
    return Rows(
        sample=torch.arange(count, device=device).repeat_interleave(take),
        step=torch.tensor([step for pick in picks for step in sorted(pick)], device=device),
        advantage=advantages.repeat_interleave(take),
    )


def minibatches(rows: Rows, trajectory: Trajectory, updates: int) -> list[Rows]:
    """Deal whole samples, shuffled, into one part per update; the parts differ by at most one sample."""
    batch = trajectory.batch
    part = (
        shuffled_places(batch.total, *trajectory.address).to(rows.sample.device)[batch.sample]
        % updates
    )
    return [rows[(part[rows.sample] == i).nonzero().flatten()] for i in range(updates)]
