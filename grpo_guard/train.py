"""The loop and the update."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from grpo_guard.experiment import Experiment as Experiment
from grpo_guard.gaussian import drift
from grpo_guard.lifecycle.checkpoint import CheckpointWriter
from grpo_guard.lifecycle.reward_check import check
from grpo_guard.lifecycle.scoring import Scored
from grpo_guard.lifecycle.stop import Stop
from grpo_guard.logger import Sink
from grpo_guard.metrics import Clock, Metric, Metrics, mean, merge, ratio_metrics, scalar
from grpo_guard.parallel.ranks import Ranks
from grpo_guard.rollout import minibatches, noise, replay_steps, transitions
from grpo_guard.session import (
    Session,
    asked,
    exporter,
    keep,
    opened,
    prepare,
    resumed,
    sample,
    scoring,
    warn,
)
from grpo_guard.types import Replay, Rewards, Rows, RunError, Trajectory, concatenate, map_tensors


def train(exp: Experiment, config: Mapping[str, Any]) -> None:
    """Train from the state that is there, or from the start, to the end; raises Stopped if asked to stop before."""
    session, folder = resumed(prepare(exp)), Path(exp.output)
    if exp.selftest:
        check(exp.reward, session.score)
    warn(session)
    keeper = CheckpointWriter(
        exp.checkpoint, folder, session.ranks, exporter(session, config), session.best
    )
    with opened(session, config) as log, closing(keeper), Stop() as stop:
        for iteration in range(session.start, exp.iterations):
            evaluated = evaluate(session, log, keeper, iteration)
            session, metrics = iterate(session, iteration)
            log.log(iteration, evaluated | session.ranks.reduce(metrics))
            stopping = session.ranks.any(stop.asked)
            keeper.after_iteration(
                iteration + 1, stopping or iteration + 1 == exp.iterations, partial(keep, session)
            )
            stop.obey(stopping, iteration + 1, folder)
        log.log(exp.iterations, evaluate(session, log, keeper, exp.iterations))


def evaluate(
    session: Session, log: Sink, keeper: CheckpointWriter, iteration: int
) -> dict[str, Metric]:
    """The evaluation, by all processes, of the policy that enters an iteration; nothing where none is due."""
    found = session.evaluate(iteration)
    metrics = session.ranks.reduce(found.metrics)
    log.show(iteration, found.images, found.captions, found.verdicts)
    check_failures(metrics, "eval/failed", session.exp.max_failed)
    keeper.after_evaluation(iteration, metrics)
    return metrics


def iterate(session: Session, iteration: int) -> tuple[Session, Metrics]:
    """Sample, score, and update the policy on what was sampled."""
    exp, model, clock = session.exp, session.model, Clock()
    batch = asked(session, iteration)
    scorer = scoring(session, batch)
    with clock("rollout"):
        trajectory = sample(session, iteration, batch, model.policy, ended=scorer.take)
    with clock("reward"):
        scored = everyones(scorer.scored(), session.ranks)
    rewarded = reward_metrics(scored.rewards, scored.group)
    check_failures(rewarded, "reward/failed", exp.max_failed)
    with clock("update"):
        advantages = exp.advantage(scored.rewards, scored.group)[batch.sample]
        parts = minibatches(
            transitions(trajectory, advantages, exp.steps_per_sample), trajectory, exp.updates
        )
        parts = [exp.old_policy(model.policy, trajectory, part, exp.microbatch) for part in parts]
        replays, found = zip(*(update(session, trajectory, part) for part in parts), strict=True)
    replay = concatenate(replays[1:] or replays)
    bounds = session.clipping.bounds(replay.drift.dimensions, exp.steps)
    metrics = [
        rewarded,
        ratio_metrics(replay, trajectory.schedule, bounds),
        *scorer.seen,
        *found,
        clock.times(),
        progress_metrics(exp, iteration, clock),
    ]
    return adapted(session, replay, trajectory, found), merge(metrics)


def everyones(scored: Scored | None, ranks: Ranks) -> Scored:
    """What all processes have scored, in the order of the samples."""
    whole = ranks.all_gather_rows(scored, "reward")
    order = whole.sample.argsort()
    return map_tensors(whole, lambda x: x[order])


def adapted(
    session: Session, replay: Replay, trajectory: Trajectory, found: Sequence[Metrics]
) -> Session:
    """The session after an iteration: its clip ranges as all processes' ratios want them."""
    seen = replace(replay, rows=replace(replay.rows, old_mean=None))
    clipping = session.clipping.adapted(
        session.ranks.all_gather_rows(seen, "end of an update"), trajectory.schedule
    )
    skipped = session.skipped
    for metrics in found:
        skipped = skipped + 1 if metrics["update/skipped"].value else 0
    if skipped > session.exp.max_skipped:
        file = blame(session, replay, trajectory)
        raise RunError(
            f"{skipped} updates in a row had a gradient that is not finite, over max_skipped={session.exp.max_skipped};"
            f" {file} names the steps and samples"
        )
    return replace(session, clipping=clipping, skipped=skipped)


def blame(session: Session, replay: Replay, trajectory: Trajectory) -> Path:
    """Write down the rows of this process whose loss or gradient is not finite; returns the file."""
    batch, rows = trajectory.batch, replay.rows
    broken = ~(replay.objective.loss.isfinite() & replay.gradient.isfinite())
    told = [
        {
            "iteration": trajectory.address[1],
            "step": int(rows.step[i]),
            "sample": int(batch.sample[rows.sample[i]]),
            "prompt": batch.prompts[batch.group[rows.sample[i]]].text,
            "advantage": float(rows.advantage[i]),
            "loss": float(replay.objective.loss[i]),
        }
        for i in broken.nonzero().flatten().tolist()
    ]
    file = Path(session.exp.output) / f"not_finite_{session.ranks.rank}.json"
    file.write_text(json.dumps(told, indent=1), encoding="utf-8")
    return file


def update(session: Session, trajectory: Trajectory, rows: Rows) -> tuple[Replay, Metrics]:
    """One optimizer step on some rows, accumulated over microbatches; the loss is divided by their number once."""
    learner, parts, replays = session.learner, rows.split(session.exp.microbatch), []
    for i, part in enumerate(parts):
        learner.begin_microbatch(last=i + 1 == len(parts))
        replays.append(accumulate(session, trajectory, part, len(rows)))
    replay, lr, norm = concatenate(replays), learner.lr, learner.step()
    session.averaged.update()
    return replay, {
        "loss/policy": mean(replay.objective.loss),
        "loss/kl": mean(replay.penalty),
        "grad_norm": scalar(norm),
        "update/skipped": scalar(float(not math.isfinite(norm))),
        "lr": scalar(lr),
    }


def accumulate(session: Session, trajectory: Trajectory, rows: Rows, count: int) -> Replay:
    """Replay rows under the present policy and add the gradient of their loss over `count`."""
    learner, batch, steps = session.learner, trajectory.batch, trajectory.schedule[rows.step]
    x, x_next = trajectory.x[rows.sample, rows.step], trajectory.x[rows.sample, rows.step + 1]
    proposed = replay_steps(learner.policy, trajectory, rows)
    proposed.mean.retain_grad()
    eps = noise(trajectory.address, batch.sample[rows.sample], rows.step, x.shape[1:])
    moved = drift(proposed, x_next, eps, rows.old_mean)
    objective = session.clipping(moved, rows, trajectory.schedule)
    penalty = session.penalize(proposed, steps, x, trajectory.condition[batch.group[rows.sample]])
    learner.backward((objective.loss + penalty).sum() / count)
    assert proposed.mean.grad is not None
    gradient = proposed.mean.grad.flatten(1).norm(dim=1) * steps.v_gain.abs() / learner.scale
    seen = Replay(rows=rows, drift=moved, objective=objective, penalty=penalty, gradient=gradient)
    return map_tensors(seen, torch.Tensor.detach)


def check_failures(metrics: Metrics, key: str, limit: float) -> None:
    """Stop when more than a share `limit` of the images could not be scored, as the metrics under a key tell."""
    shares = {
        name.removeprefix(key).strip("/"): m.value
        for name, m in metrics.items()
        if name.startswith(key)
    }
    worst = max(shares.values(), default=0.0)
    if worst > limit:
        names = ", ".join(name for name, share in shares.items() if name and share)
        raise RunError(
            f"{worst:.1%} of the images could not be scored, over max_failed={limit:.1%}; mend {names}"
        )


def reward_metrics(rewards: Rewards, group: Int[Tensor, " B"]) -> Metrics:
    """`reward/<name>` of every part, their total, the share that failed, of all and of each reward that is summed, and
    the share of groups that teach nothing.
    """
    parts = {f"reward/{name}": mean(values) for name, values in rewards.parts.items()}
    failed = {
        f"reward/failed/{name}": mean(1.0 - rewards.parts[name].isfinite().float())
        for name in rewards.weights
    }
    totals = [rewards.total[(group == g) & ~rewards.failed] for g in group.unique()]
    alike = torch.tensor([float(len(t) == 0 or bool(t.max() == t.min())) for t in totals])
    return (
        parts
        | failed
        | {
            "reward/total": mean(rewards.total),
            "reward/failed": mean(rewards.failed.float()),
            "advantage/zero_std_groups": mean(alike),
        }
    )


def progress_metrics(exp: Experiment, iteration: int, clock: Clock) -> Metrics:
    """How far the run has come, how fast, and in how much memory."""
    done, samples = iteration + 1, exp.batch_sizes.samples
    return {
        "images": scalar(done * samples),
        "update": scalar(done * exp.updates),
        "time/total": scalar(clock.total),
        "throughput/images_per_s": scalar(samples / clock.total),
        "memory/peak_bytes": scalar(peak_bytes()),
    }


def peak_bytes() -> int:
    """The most memory ever held: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
