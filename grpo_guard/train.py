"""The experiment, the loop and the update."""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from grpo_guard import card, rng
from grpo_guard.advantage import Advantage
from grpo_guard.backbone import Backbone, Model
from grpo_guard.checkpoint import kept
from grpo_guard.clipping import Clipping
from grpo_guard.data import Data, Split, plan
from grpo_guard.ema import Averaged, Ema, within
from grpo_guard.eval import Eval, Evaluate
from grpo_guard.gaussian import drift
from grpo_guard.geometry import Geometry
from grpo_guard.kl import Kl, Penalize
from grpo_guard.logger import Logger, Run
from grpo_guard.metrics import Clock, Metrics, mean, merge, ratio_metrics, scalar
from grpo_guard.old import Old
from grpo_guard.preflight import MARGIN, measure, verdict
from grpo_guard.reward import Reward, Scorer
from grpo_guard.rollout import minibatches, noise, replayed, rollout, transitions
from grpo_guard.sde import Sde, schedule
from grpo_guard.strategy import Strategy
from grpo_guard.tail import Tail
from grpo_guard.types import (
    ConfigError,
    Prompt,
    Replay,
    Rewards,
    Rows,
    Schedule,
    Trajectory,
    Velocity,
    component,
    each,
    record,
    require,
    stack,
)


@component
class Experiment:
    """One run: its parts, and the handful of numbers that belong to none of them.

    `steps` denoising steps per rollout, `updates` optimizer steps per iteration, each on its own share of the samples;
    `steps_per_sample` of the trained steps are replayed for each sample (null: all); `microbatch` rows are forwarded at
    a time, in rollout and replay alike, so that an unchanged policy replays to a log-ratio of exactly 0.
    """

    backbone: Backbone
    data: Data
    sde: Sde
    reward: Reward
    advantage: Advantage
    clipping: Clipping
    kl: Kl
    old: Old
    tail: Tail
    ema: Ema
    optim: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    strategy: Strategy
    logger: Logger
    eval: Eval
    seed: int
    iterations: int
    steps: int
    updates: int
    microbatch: int
    steps_per_sample: int | None
    max_grad_norm: float
    max_failed: float
    checkpoint_every: int
    output: str

    def __post_init__(self) -> None:
        for key in ("iterations", "updates", "microbatch", "checkpoint_every", "max_grad_norm"):
            require(getattr(self, key) > 0, f"{key}={getattr(self, key)} is not positive")
        require(self.steps > 1, f"steps={self.steps} leaves no trained step; give 2 or more")
        require(self.sde.level > 0, "sde=ode has no noise, so there is no ratio to clip; choose sde=flow, dance or cps")
        require(
            0 <= self.max_failed <= 1, f"max_failed={self.max_failed} is outside [0, 1]; it is a share of the images"
        )
        self.sde.window.check(self.steps)
        trained = self.sde.window.size(self.steps)
        require(
            self.steps_per_sample is None or 0 < self.steps_per_sample <= trained,
            f"steps_per_sample={self.steps_per_sample} is outside 1..{trained}, the trained steps; give null for all",
        )
        _ = self.geometry
        _check_optimizer(self)

    @property
    def geometry(self) -> Geometry:
        """The batches of an iteration; raises ConfigError where they do not divide."""
        return Geometry(
            prompts=self.data.prompts,
            repeats=self.data.repeats,
            rows=self.steps_per_sample or self.sde.window.size(self.steps),
            updates=self.updates,
            processes=self.strategy.processes,
            microbatch=self.microbatch,
        )

    def split(self) -> Split:
        """The prompts that the reward accepts; raises ConfigError where there are none."""
        return self.data.load().accepted(self.reward.accepts)


def _check_optimizer(exp: Experiment) -> None:
    """Let the optimizer judge its own settings, on a parameter of no account."""
    try:
        exp.optim([nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optim cannot be used ({error}); see conf/optim") from error


@record
class Session:
    """An experiment with everything loaded; `clipping` is its objective as the last iteration adapted it.

    `scaler` keeps float16 gradients from vanishing and does nothing for other dtypes.
    """

    exp: Experiment
    model: Model
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    averaged: Averaged
    score: Scorer
    evaluate: Evaluate
    penalize: Penalize
    clipping: Clipping
    prompts: Sequence[Prompt]
    device: torch.device

    def schedule(self, iteration: int) -> Schedule:
        """The denoising steps of an iteration."""
        times = self.model.times(self.exp.steps)
        return each(schedule(self.exp.sde, times, (self.exp.seed, iteration)), lambda x: x.to(self.device))


def prepare(exp: Experiment) -> Session:
    """Load every part."""
    device, split = exp.strategy.start(), exp.split()
    torch.manual_seed(rng.key(exp.seed, "initialisation"))
    model, score = exp.backbone.load(device), exp.reward.load(device)
    optimizer = exp.optim(trainable(model))
    averaged = exp.ema.follow(trainable(model), optimizer)
    return Session(
        exp=exp,
        model=model,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=model.dtype == torch.float16),
        averaged=averaged,
        score=score,
        evaluate=within(averaged, exp.eval.load(model, split, score, device, exp.iterations)),
        penalize=exp.kl.load(model),
        clipping=exp.clipping,
        prompts=split.train,
        device=device,
    )


def train(exp: Experiment, config: Mapping[str, Any]) -> None:
    """Train from start to end; however it ends, metrics are complete and a checkpoint is written."""
    session, folder = prepare(exp), Path(exp.output)
    warn(session)

    def save(partial: Path, iterations: int) -> None:
        within(session.averaged, session.model.save)(partial)
        card.write(partial / "README.md", config, folder / "metrics.jsonl", iterations)

    with (
        exp.logger.open(Run(folder=folder, config=config, iterations=exp.iterations)) as log,
        kept(save, folder, exp.checkpoint_every) as done,
    ):
        for iteration in range(exp.iterations):
            evaluation = session.evaluate(iteration)
            log.show(iteration, evaluation.images, evaluation.captions)
            session, metrics = iterate(session, iteration)
            log.log(iteration, exp.strategy.reduce(merge([evaluation.metrics, metrics])))
            done(iteration + 1)
        final = session.evaluate(exp.iterations)
        log.show(exp.iterations, final.images, final.captions)
        log.log(exp.iterations, exp.strategy.reduce(final.metrics))


def probe(session: Session, policy: Velocity | None = None) -> tuple[Trajectory, Rows]:
    """A microbatch of the first iteration's samples, and the rows of all their trained steps, as training has them."""
    exp, policy = session.exp, policy or session.model.policy
    trajectory = sample(session, 0, policy, exp.microbatch)
    rows = transitions(trajectory, torch.zeros(len(trajectory.x), device=session.device))
    return trajectory, exp.old(policy, trajectory, rows, exp.microbatch)


def sample(session: Session, iteration: int, policy: Velocity, count: int | None = None) -> Trajectory:
    """The trajectories of an iteration's samples, or of the first `count` of them."""
    exp, model = session.exp, session.model
    batch = each(plan(exp.data, session.prompts, exp.seed, iteration), lambda x: x[:count].to(session.device))
    return rollout(
        policy, session.schedule(iteration), batch, model.encode([p.text for p in batch.prompts]), model.shape,
        address=(exp.seed, iteration), microbatch=exp.microbatch, tail=exp.tail,
    )  # fmt: skip


def warn(session: Session) -> None:
    """Log a line where ratios are noisy before anything is trained."""
    trajectory, rows = probe(session)
    floor = measure(session.model.policy, trajectory, rows, session.clipping, session.exp.microbatch)
    if floor.share.max() > MARGIN:
        logging.getLogger(__name__).warning(verdict(floor, remedies(rows)))


def remedies(rows: Rows) -> tuple[str, ...]:
    """What lowers the noise floor, or rises above it, and is not done yet."""
    replay = ("old=replay",) if rows.old_mean is None else ()
    return (*replay, "backbone.dtype=float32", "a wider clipping.high")


def iterate(session: Session, iteration: int) -> tuple[Session, Metrics]:
    """Sample, score, and update the policy on what was sampled."""
    exp, model, clock = session.exp, session.model, Clock()
    with clock("rollout"):
        trajectory = sample(session, iteration, model.policy)
        images, batch = model.decode(trajectory.sample), trajectory.batch
    with clock("reward"):
        rewards = session.score(images, batch.each())
    check_failures(rewards, exp.max_failed)
    with clock("update"):
        rows = transitions(trajectory, exp.advantage(rewards, batch.group), exp.steps_per_sample)
        parts = minibatches(rows, trajectory, exp.updates)
        parts = [exp.old(model.policy, trajectory, part, exp.microbatch) for part in parts]
        replays, found = zip(*(update(session, trajectory, part) for part in parts), strict=True)
    replay = stack(replays[1:] or replays)
    bounds = session.clipping.bounds(replay.drift.dimensions, exp.steps)
    metrics = [
        reward_metrics(rewards, batch.group),
        ratio_metrics(replay, trajectory.schedule, bounds),
        *found,
        clock.times(),
        progress_metrics(exp, iteration, clock),
    ]
    return replace(session, clipping=session.clipping.adapted(replay, trajectory.schedule)), merge(metrics)


def update(session: Session, trajectory: Trajectory, rows: Rows) -> tuple[Replay, Metrics]:
    """One optimizer step on some rows, accumulated over microbatches; the loss is divided by their number once."""
    exp, parameters = session.exp, trainable(session.model)
    replay = stack([accumulate(session, trajectory, part, len(rows)) for part in rows.split(exp.microbatch)])
    session.scaler.unscale_(session.optimizer)
    norm = nn.utils.clip_grad_norm_(parameters, exp.max_grad_norm)
    session.scaler.step(session.optimizer)
    session.scaler.update()
    session.optimizer.zero_grad()
    losses = {"loss/policy": mean(replay.objective.loss), "loss/kl": mean(replay.penalty)}
    return replay, losses | {"grad_norm": mean(norm.reshape(1)), "lr": scalar(session.optimizer.param_groups[0]["lr"])}


def accumulate(session: Session, trajectory: Trajectory, rows: Rows, count: int) -> Replay:
    """Replay rows under the present policy and add the gradient of their loss over `count`."""
    batch, steps = trajectory.batch, trajectory.schedule[rows.step]
    x, x_next = trajectory.x[rows.sample, rows.step], trajectory.x[rows.sample, rows.step + 1]
    proposed = replayed(session.model.policy, trajectory, rows)
    proposed.mean.retain_grad()
    eps = noise(trajectory.address, batch.sample[rows.sample], rows.step, x.shape[1:])
    moved = drift(proposed, x_next, eps, rows.old_mean)
    objective = session.clipping(moved, rows, trajectory.schedule)
    penalty = session.penalize(proposed, steps, x, trajectory.condition[batch.group[rows.sample]])
    session.scaler.scale((objective.loss + penalty).sum() / count).backward()
    assert proposed.mean.grad is not None
    gradient = proposed.mean.grad.flatten(1).norm(dim=1) * steps.v_gain.abs() / session.scaler.get_scale()
    seen = Replay(rows=rows, drift=moved, objective=objective, penalty=penalty, gradient=gradient)
    return each(seen, torch.Tensor.detach)


def trainable(model: Model) -> list[nn.Parameter]:
    """The parameters that training changes."""
    return [p for p in model.policy.parameters() if p.requires_grad]


class RunError(RuntimeError):
    """A run that cannot go on: one line that says why and what to do."""


def check_failures(rewards: Rewards, limit: float) -> None:
    """Stop when more than a share `limit` of the images could not be scored."""
    share = rewards.failed.float().mean().item()
    if share > limit:
        raise RunError(f"{share:.1%} of the images could not be scored, over max_failed={limit:.1%}; mend the reward")


def reward_metrics(rewards: Rewards, group: Int[Tensor, " B"]) -> Metrics:
    """`reward/<name>` of every part, their total, how many failed, and the share of groups that teach nothing."""
    parts = {f"reward/{name}": mean(values) for name, values in rewards.parts.items()}
    totals = [rewards.total[(group == g) & ~rewards.failed] for g in group.unique()]
    alike = torch.tensor([float(len(t) == 0 or bool(t.max() == t.min())) for t in totals])
    return parts | {
        "reward/total": mean(rewards.total),
        "reward/failed": mean(rewards.failed.float()),
        "advantage/zero_std_groups": mean(alike),
    }


def progress_metrics(exp: Experiment, iteration: int, clock: Clock) -> Metrics:
    """How far the run has come, how fast, and in how much memory."""
    done, samples = iteration + 1, exp.geometry.samples
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
