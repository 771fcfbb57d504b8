"""The training loop: draw, score, advantages, rows, updates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from grpo_guard.clipping import Limits
from grpo_guard.diagnostics import iteration as measure
from grpo_guard.diagnostics.memory import explain_shortage
from grpo_guard.diagnostics.ratios import ratio_metrics
from grpo_guard.experiment import Experiment
from grpo_guard.lifecycle.scoring import cancel_on_error, gather_scores
from grpo_guard.metrics import Clock, Metrics, merge
from grpo_guard.old_policy import OldMeans, replay_against
from grpo_guard.probe import check_before_training
from grpo_guard.rehearsal import fit_microbatch
from grpo_guard.rollout import measure_drift, minibatches, transitions
from grpo_guard.run_folder import open_run
from grpo_guard.session import Session, adapt_range, limit_skips, prepare, resume
from grpo_guard.types import Replay, Rows, Step, Trajectory, concatenate, map_tensors


def train(exp: Experiment, config: Mapping[str, Any]) -> None:
    """Train from the newest state, or from the start, to the end; raises Stopped on request."""
    session = fit_microbatch(resume(prepare(exp)), accumulate)
    check_before_training(session)
    end = session.exp.iterations
    with open_run(session, config) as run:
        for iteration in range(session.start, end):
            evaluation = run.evaluate(iteration)
            session, metrics = iterate(session, iteration)
            run.finish_iteration(session, iteration, evaluation | session.ranks.reduce(metrics))
        run.log.log(end, run.evaluate(end))


def iterate(session: Session, iteration: int) -> tuple[Session, Metrics]:
    """Draw samples, score them, and update the policy on them."""
    exp = session.exp
    size = exp.batch_sizes.microbatch
    clock = Clock()
    device = session.ranks.device
    batch = session.local_batch(iteration)
    scorer = session.open_scorer(batch)
    with clock("rollout"), explain_shortage(device, "rollout"), cancel_on_error(scorer):
        trajectory = session.draw(iteration, batch, session.policy, on_latents=scorer.take)
    with clock("reward"), explain_shortage(device, "reward"):
        own_scores, watched = scorer.finish()
        scored = gather_scores(own_scores, session.ranks)
    rewarded = measure.reward_metrics(scored.rewards, scored.group)
    measure.check_failures(rewarded, "reward/failed", exp.max_failed)
    limits = session.limits()
    replays: list[Replay] = []
    updates: list[Metrics] = []
    with clock("update"), explain_shortage(device, "update"):
        advantages = exp.advantage(scored.rewards, scored.group)[batch.sample.cpu()]
        rows = transitions(trajectory, advantages, exp.steps_per_sample)
        parts = minibatches(rows, trajectory, exp.updates)
        parts = [map_tensors(part, lambda x: x.to(device)) for part in parts]
        # What is known of the old policy is taken before the first update moves it.
        old = exp.old_policy(session.policy, trajectory, size)
        parts = [old.store(part) for part in parts]
        for part in parts:
            replay, metrics = update(session, trajectory, old, part, limits)
            replays.append(replay)
            updates.append(metrics)
    session.keeper.finish(trajectory, scored, parts, limits)
    session = limit_skips(session, updates, replays, trajectory)
    # The first update sees ratios of exactly 1, on which no clip can act: it is left out of what is
    # measured and adapted, unless it is the only one (docs/adr/0006).
    off_policy = concatenate(replays[1:] or replays)
    ratios = ratio_metrics(off_policy, trajectory.schedule, limits)
    progress = measure.progress_metrics(exp, iteration, clock, device)
    metrics = merge([rewarded, ratios, watched, *updates, clock.times(), progress])
    return adapt_range(session, off_policy, trajectory.schedule), metrics


def update(
    session: Session, trajectory: Trajectory, old: OldMeans, rows: Rows, limits: Limits
) -> tuple[Replay, Metrics]:
    """Take one optimizer step on the mean loss of some rows, accumulated over microbatches.

    Microbatches without any advantage have no gradient: they are only measured.
    """
    learner = session.learner
    parts = rows.split(session.exp.batch_sizes.microbatch)
    learning = count_learning(session, rows)
    # Rows without an advantage come first (`rollout.minibatches`).
    with torch.no_grad():
        idle = parts[: len(parts) - learning]
        replays = [forward(session, trajectory, old, part, limits)[1] for part in idle]
    for number, part in enumerate(parts[len(idle) :], start=1):
        learner.begin_microbatch(last=number == learning)
        replays.append(accumulate(session, trajectory, old, part, limits, len(rows)))
    replay = concatenate(replays)
    lr = learner.lr
    grad_norm = learner.step()
    session.averaged.update()
    return replay, measure.update_metrics(replay, lr, grad_norm)


def count_learning(session: Session, rows: Rows) -> int:
    """Return how many of an update's microbatches go backward; the same on all processes.

    Rows without an advantage come first. They have no gradient, unless a penalty gives them one.
    """
    exp = session.exp
    may_idle = exp.clipping.idles_without_advantage and exp.kl.reference_forwards == 0
    learning = int(rows.advantage.count_nonzero()) if may_idle else len(rows)
    # An optimizer step needs a gradient, be it 0.
    count = max(1, math.ceil(learning / exp.batch_sizes.microbatch))
    return max(session.ranks.all_gather(count, "update"))


def accumulate(
    session: Session,
    trajectory: Trajectory,
    old: OldMeans,
    rows: Rows,
    limits: Limits,
    count: int,
) -> Replay:
    """Replay rows under the present policy and add the gradient of their loss over `count`."""
    proposed, replay = forward(session, trajectory, old, rows, limits)
    proposed.mean.retain_grad()
    session.learner.backward((replay.objective.loss + replay.penalty).sum() / count)
    assert proposed.mean.grad is not None
    by_mean = proposed.mean.grad.flatten(1).norm(dim=1)
    gradient = by_mean * proposed.gain / session.learner.loss_scale
    return map_tensors(replace(replay, gradient=gradient), Tensor.detach)


def forward(
    session: Session, trajectory: Trajectory, old: OldMeans, rows: Rows, limits: Limits
) -> tuple[Step, Replay]:
    """Replay rows under the present policy; return its steps, and the losses of the rows."""
    proposed, rows = replay_against(old, session.policy, trajectory, rows)
    session.keeper.take(trajectory, rows, proposed.mean)
    drift = measure_drift(proposed, trajectory, rows)
    replay = Replay(
        # Old means are as large as latents, and nobody reads them after this.
        rows=replace(rows, old_mean=None),
        drift=drift,
        objective=session.exp.clipping(drift, rows, trajectory.schedule, limits),
        penalty=session.penalize(proposed, trajectory, rows),
        gradient=torch.zeros_like(proposed.std),
    )
    return proposed, replay
