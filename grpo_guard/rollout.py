"""Sampling and replay: one function proposes every step, whoever calls it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grpo_guard import rng
from grpo_guard.data import shuffled_places
from grpo_guard.final_steps import FinalSteps
from grpo_guard.gaussian import advance, drift, drift_from_mean, trailing
from grpo_guard.types import (
    Batch,
    Condition,
    Drift,
    Rows,
    Schedule,
    Step,
    Trajectory,
    Velocity,
)


def propose(
    policy: Velocity, steps: Schedule, x: Float[Tensor, "R ..."], condition: Condition
) -> Step:
    """Return the policy's Gaussian for each row, from latents `x` at times `steps.t`.

    Every trained step is proposed here, in the rollout and in replay alike. With the same rows side
    by side, an unchanged policy therefore replays to a log-ratio of exactly 0.
    """
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
    on_latents: Callable[[Float[Tensor, "b ..."]], None] = lambda latents: None,
) -> Trajectory:
    """Follow the schedule from noise to image for every sample, `microbatch` samples at a time.

    `shape` is the shape of one latent, `condition` has one row per prompt of the batch, and
    `address` is (seed, iteration). `on_latents` receives the latents of each microbatch at time 0
    as soon as they exist.
    """
    walked = final_steps.stored_steps(schedule)
    # Numbers that the loop needs come to the CPU once: with a GPU, each look would wait for it.
    numbers = batch.sample.cpu()
    noisy = (walked.std > 0).tolist()
    paths, ends = [], []
    for start in range(0, len(numbers), microbatch):
        part = slice(start, start + microbatch)
        rows = condition[batch.group[part]]
        path = _walk(policy, walked, noisy, numbers[part], rows, shape, address)
        end = final_steps.finish(policy, path[-1], walked.t_next[-1], rows)
        on_latents(end)
        paths.append(torch.stack(path, dim=1))
        ends.append(end)
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
    noisy: Sequence[bool],
    samples: Int[Tensor, " B"],
    condition: Condition,
    shape: Sequence[int],
    address: tuple[int, int],
) -> list[Float[Tensor, "B ..."]]:
    """Return the latents of some samples at every time of the schedule.

    Steps that are not `noisy` follow the ODE: they lie outside the SDE window and are never
    trained. `samples` are on the CPU.
    """
    device = schedule.t.device

    def draw_noise(step: int) -> Float[Tensor, "B ..."]:
        return rng.noise(address, samples, torch.full_like(samples, step), shape, device)

    x = draw_noise(rng.START)
    path = [x]
    for number, is_noisy in enumerate(noisy):
        at = torch.full((len(samples),), number, device=device)
        step = propose(policy, schedule[at], x, condition)
        x = advance(step, draw_noise(number)) if is_noisy else step.mean
        path.append(x)
    return path


def replay_steps(policy: Velocity, trajectory: Trajectory, rows: Rows) -> Step:
    """Return the policy's Gaussian for each row, from the latents that the rollout stored."""
    x = trajectory.x[rows.sample, rows.step]
    group = trajectory.batch.group[rows.sample]
    return propose(policy, trajectory.schedule[rows.step], x, trajectory.condition[group])


def measure_drift(step: Step, trajectory: Trajectory, rows: Rows) -> Drift:
    """Measure how far replayed steps have moved since the rollout drew the next latents."""
    x_next = trajectory.x[rows.sample, rows.step + 1]
    if rows.old_mean is not None:
        return drift_from_mean(step, x_next, rows.old_mean)
    samples, steps = torch.stack([trajectory.batch.sample[rows.sample], rows.step]).cpu()
    eps = rng.noise(trajectory.address, samples, steps, x_next.shape[1:], x_next.device)
    return drift(step, x_next, eps)


def transitions(
    trajectory: Trajectory,
    advantages: Float[Tensor, " B"],
    steps_per_sample: int | None = None,
) -> Rows:
    """Make the training rows of the trained steps, sample by sample.

    With `steps_per_sample`, each sample gives that many of its steps, chosen at random so that
    every step is trained equally often (to within one). Samples of advantage 0 stay: they count in
    every mean.
    """
    trained = trajectory.schedule.trained.nonzero().flatten().tolist()
    samples = trajectory.batch.sample.tolist()
    take = len(trained) if steps_per_sample is None else steps_per_sample
    # All processes draw the same order of steps and the same turn for each sample. A sample takes
    # the next steps of that order.
    order = rng.permutation(len(trained), *trajectory.address, "steps")
    turns = rng.permutation(trajectory.batch.total, *trajectory.address, "turns")
    steps: list[int] = []
    for sample in samples:
        first = turns[sample] * take
        picks = [trained[order[(first + k) % len(trained)]] for k in range(take)]
        steps.extend(sorted(picks))
    device = advantages.device
    return Rows(
        sample=torch.arange(len(samples), device=device).repeat_interleave(take),
        step=torch.tensor(steps, device=device),
        advantage=advantages.repeat_interleave(take),
    )


def minibatches(rows: Rows, trajectory: Trajectory, updates: int) -> list[Rows]:
    """Deal whole samples, shuffled, into one part per update; rows without an advantage come first.

    The parts differ by at most one sample, whatever the number of processes.
    """
    batch = trajectory.batch
    places = shuffled_places(batch.total, *trajectory.address)
    update = (places[batch.sample.cpu()] % updates).to(rows.sample.device)[rows.sample]
    parts = [rows[(update == i).nonzero().flatten()] for i in range(updates)]
    return [part[(part.advantage != 0).int().argsort(stable=True)] for part in parts]
