"""The experiment, the loop and the update."""

from __future__ import annotations

import json
import logging
import math
import resource
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from grpo_guard import card, rng
from grpo_guard.advantage import Advantage
from grpo_guard.backbone import Backbone, Model
from grpo_guard.checkpoint import Checkpoints, Keeper, Kept, newest, read
from grpo_guard.clipping import Clipping
from grpo_guard.data import Data, Split, dealt, plan
from grpo_guard.ema import Averaged, Ema, within
from grpo_guard.eval import Eval, Evaluate
from grpo_guard.gaussian import drift
from grpo_guard.geometry import Geometry
from grpo_guard.kl import Kl, Penalize
from grpo_guard.learner import Learner, Optim, Optimization
from grpo_guard.logger import SILENT, Logger, Run, Sink
from grpo_guard.metrics import Clock, Metric, Metrics, mean, merge, ratio_metrics, scalar
from grpo_guard.old import Old
from grpo_guard.preflight import MARGIN, measure, verdict
from grpo_guard.ranks import Ranks
from grpo_guard.reward import Reward, Scorer
from grpo_guard.rollout import minibatches, noise, replayed, rollout, transitions
from grpo_guard.scoring import Scoring
from grpo_guard.sde import Sde, schedule
from grpo_guard.selftest import check
from grpo_guard.stop import Stop
from grpo_guard.strategy import Strategy
from grpo_guard.tail import Tail
from grpo_guard.types import (
    Batch,
    ConfigError,
    Prompt,
    Replay,
    Rewards,
    Rows,
    RunError,
    Schedule,
    Trajectory,
    Velocity,
    component,
    each,
    record,
    require,
    stack,
)

journal = logging.getLogger(__name__)


@component
class Experiment:
    """One run: its parts, and the handful of numbers that belong to none of them.

    `steps` denoising steps per rollout, `updates` optimizer steps per iteration, each on its own share of the samples;
    `steps_per_sample` of the trained steps are replayed for each sample (null: all); `microbatch` rows are forwarded at
    a time, in rollout and replay alike, so that an unchanged policy replays to a log-ratio of exactly 0. An update
    whose gradient is not finite is skipped; more than `max_skipped` in a row stop the run. Rewards are computed group
    by group; where `asynchronous`, in a thread, while further samples are drawn. With `selftest`, the reward must
    first tell known pictures apart. `resume` is auto (go on from the newest state in `output`), never, or a state to
    begin from.
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
    optim: Optim
    strategy: Strategy
    logger: Logger
    eval: Eval
    checkpoint: Checkpoints
    seed: int
    iterations: int
    steps: int
    updates: int
    microbatch: int
    steps_per_sample: int | None
    max_grad_norm: float
    max_failed: float
    max_skipped: int
    asynchronous: bool
    selftest: bool
    resume: str
    output: str

    def __post_init__(self) -> None:
        for key in ("iterations", "updates", "microbatch", "max_grad_norm"):
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
    """An experiment with everything loaded, before its iteration `start`.

    `clipping` is its objective as the last iteration adapted it, `skipped` the updates skipped in a row, `best` the
    highest value so far of the metric that the best checkpoint is chosen by.
    """

    exp: Experiment
    ranks: Ranks
    model: Model
    learner: Learner
    averaged: Averaged
    score: Scorer
    evaluate: Evaluate
    penalize: Penalize
    clipping: Clipping
    prompts: Sequence[Prompt]
    start: int = 0
    skipped: int = 0
    best: float | None = None

    def schedule(self, iteration: int) -> Schedule:
        """The denoising steps of an iteration."""
        times = self.model.times(self.exp.steps)
        return each(schedule(self.exp.sde, times, (self.exp.seed, iteration)), lambda x: x.to(self.ranks.device))


def prepare(exp: Experiment) -> Session:
    """Load every part."""
    ranks, split = exp.strategy.start(), exp.split()
    exp = replace(exp, output=ranks.agreed(exp.output))
    torch.manual_seed(rng.key(exp.seed, "initialisation"))
    model, score = exp.backbone.load(ranks.device), exp.reward.load(ranks.device)
    evaluate, penalize = exp.eval.load(model, split, score, ranks, exp.iterations), exp.kl.load(model)
    optimization = Optimization(optim=exp.optim, max_norm=exp.max_grad_norm, dtype=model.dtype)
    learner = exp.strategy.place(model.policy, optimization, ranks)
    averaged = exp.ema.follow(learner.parameters)
    return Session(
        exp=exp,
        ranks=ranks,
        model=model,
        learner=learner,
        averaged=averaged,
        score=score,
        evaluate=within(averaged, evaluate),
        penalize=penalize,
        clipping=exp.clipping,
        prompts=split.train,
    )


def train(exp: Experiment, config: Mapping[str, Any]) -> None:
    """Train from the state that is there, or from the start, to the end; raises Stopped if asked to stop before."""
    session, folder = resumed(prepare(exp)), Path(exp.output)
    if exp.selftest:
        check(exp.reward, session.score)
    warn(session)
    keeper = Keeper(exp.checkpoint, folder, session.ranks, exporter(session, config), session.best)
    with opened(session, config) as log, closing(keeper), Stop() as stop:
        for iteration in range(session.start, exp.iterations):
            evaluated = evaluate(session, log, keeper, iteration)
            session, metrics = iterate(session, iteration)
            log.log(iteration, evaluated | session.ranks.reduce(metrics))
            stopping = session.ranks.any(stop.asked)
            keeper.done(iteration + 1, stopping or iteration + 1 == exp.iterations, partial(keep, session))
            stop.obey(stopping, iteration + 1, folder)
        log.log(exp.iterations, evaluate(session, log, keeper, exp.iterations))


def opened(session: Session, config: Mapping[str, Any]) -> AbstractContextManager[Sink]:
    """Where the numbers go: the first process writes for all."""
    exp = session.exp
    run = Run(folder=Path(exp.output), config=config, iterations=exp.iterations, start=session.start)
    return exp.logger.open(run) if session.ranks.first else nullcontext(SILENT)


def evaluate(session: Session, log: Sink, keeper: Keeper, iteration: int) -> dict[str, Metric]:
    """The evaluation, by all processes, of the policy that enters an iteration; nothing where none is due."""
    found = session.evaluate(iteration)
    metrics = session.ranks.reduce(found.metrics)
    log.show(iteration, found.images, found.captions, found.verdicts)
    keeper.judged(iteration, metrics)
    return metrics


def exporter(session: Session, config: Mapping[str, Any]) -> Callable[[Path, int], None]:
    """Writes what was trained, with its card, into a folder."""

    def export(folder: Path, iterations: int) -> None:
        weights = within(session.averaged, session.learner.weights)()
        if session.ranks.first:
            session.model.save(folder, weights)
            card.write(folder / "README.md", config, Path(session.exp.output) / "metrics.jsonl", iterations)

    return export


def keep(session: Session) -> Kept:
    """The state of a session between two iterations; the rest follows from the experiment."""
    notes = {"reach": list(session.clipping.reach), "skipped": session.skipped}
    return Kept(tensors={**session.learner.state(), "average": session.averaged.state()}, notes=notes)


def resumed(session: Session) -> Session:
    """The session as `resume` wants it: at a state, or at the start where there is none."""
    exp, ranks = session.exp, session.ranks
    named = {"auto": lambda: newest(Path(exp.output)), "never": lambda: None}
    state = ranks.agreed(named.get(exp.resume, lambda: Path(exp.resume))() if ranks.first else None)
    if state is None:
        return session
    tensors = keep(session).tensors
    notes = read(state, tensors)
    require(
        notes["iterations"] <= exp.iterations,
        f"iterations={exp.iterations} is less than the {notes['iterations']} that {state} has; give more",
    )
    session.learner.load(tensors)
    session.averaged.load(tensors["average"])
    clipping = session.clipping.reaching(tuple(notes["reach"]))
    journal.info("goes on after iteration %d, from %s", notes["iterations"], state)
    return replace(session, clipping=clipping, skipped=notes["skipped"], start=notes["iterations"], best=notes["best"])


def probe(session: Session, policy: Velocity | None = None) -> tuple[Trajectory, Rows]:
    """A microbatch of the first iteration's samples, and the rows of all their trained steps, as training has them."""
    exp, policy = session.exp, policy or session.model.policy
    trajectory = sample(session, 0, each(asked(session, 0), lambda x: x[: exp.microbatch]), policy)
    rows = transitions(trajectory, torch.zeros(len(trajectory.x), device=session.ranks.device))
    return trajectory, exp.old(policy, trajectory, rows, exp.microbatch)


def asked(session: Session, iteration: int) -> Batch:
    """This process's samples of an iteration."""
    exp, ranks, address = session.exp, session.ranks, (session.exp.seed, iteration)
    whole = plan(exp.data, session.prompts, *address)
    return each(dealt(whole, address, exp.updates, ranks.rank, ranks.processes), lambda x: x.to(ranks.device))


def sample(session: Session, iteration: int, batch: Batch, policy: Velocity, **more: Any) -> Trajectory:
    """The trajectories of some samples of an iteration."""
    exp, model = session.exp, session.model
    return rollout(
        policy, session.schedule(iteration), batch, model.encode([p.text for p in batch.prompts]), model.shape,
        address=(exp.seed, iteration), microbatch=exp.microbatch, tail=exp.tail, **more,
    )  # fmt: skip


def warn(session: Session) -> None:
    """Log a line where ratios are noisy before anything is trained."""
    trajectory, rows = probe(session)
    floor = measure(session.model.policy, trajectory, rows, session.clipping, session.exp.microbatch)
    if floor.share.max() > MARGIN and session.ranks.first:
        journal.warning(verdict(floor, remedies(rows)))


def remedies(rows: Rows) -> tuple[str, ...]:
    """What lowers the noise floor, or rises above it, and is not done yet."""
    replay = ("old=replay",) if rows.old_mean is None else ()
    return (*replay, "backbone.dtype=float32", "a wider clipping.high")


def iterate(session: Session, iteration: int) -> tuple[Session, Metrics]:
    """Sample, score, and update the policy on what was sampled."""
    exp, model, clock = session.exp, session.model, Clock()
    batch = asked(session, iteration)
    scoring = Scoring(model.decode, session.score, batch, asynchronous=exp.asynchronous)
    with clock("rollout"):
        trajectory = sample(session, iteration, batch, model.policy, ended=scoring.take)
    with clock("reward"):
        scored = everyones(scoring.rewards(), batch, session.ranks)
    check_failures(scored.rewards, exp.max_failed)
    with clock("update"):
        advantages = exp.advantage(scored.rewards, scored.group)[batch.sample]
        parts = minibatches(transitions(trajectory, advantages, exp.steps_per_sample), trajectory, exp.updates)
        parts = [exp.old(model.policy, trajectory, part, exp.microbatch) for part in parts]
        replays, found = zip(*(update(session, trajectory, part) for part in parts), strict=True)
    replay = stack(replays[1:] or replays)
    bounds = session.clipping.bounds(replay.drift.dimensions, exp.steps)
    metrics = [
        reward_metrics(scored.rewards, scored.group),
        ratio_metrics(replay, trajectory.schedule, bounds),
        *found,
        clock.times(),
        progress_metrics(exp, iteration, clock),
    ]
    return adapted(session, replay, trajectory, found), merge(metrics)


@record
class Scored:
    """Samples and their rewards."""

    rewards: Rewards
    group: Int[Tensor, " B"]
    sample: Int[Tensor, " B"]


def everyones(rewards: Rewards, batch: Batch, ranks: Ranks) -> Scored:
    """What all processes have scored, in the order of the samples."""
    whole = ranks.gather(Scored(rewards=rewards, group=batch.group, sample=batch.sample), "reward")
    order = whole.sample.argsort()
    return each(whole, lambda x: x[order])


def adapted(session: Session, replay: Replay, trajectory: Trajectory, found: Sequence[Metrics]) -> Session:
    """The session after an iteration: its clip ranges as all processes' ratios want them."""
    seen = replace(replay, rows=replace(replay.rows, old_mean=None))
    clipping = session.clipping.adapted(session.ranks.gather(seen, "end of an update"), trajectory.schedule)
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
        learner.announce(last=i + 1 == len(parts))
        replays.append(accumulate(session, trajectory, part, len(rows)))
    replay, lr, norm = stack(replays), learner.lr, learner.step()
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
    proposed = replayed(learner.policy, trajectory, rows)
    proposed.mean.retain_grad()
    eps = noise(trajectory.address, batch.sample[rows.sample], rows.step, x.shape[1:])
    moved = drift(proposed, x_next, eps, rows.old_mean)
    objective = session.clipping(moved, rows, trajectory.schedule)
    penalty = session.penalize(proposed, steps, x, trajectory.condition[batch.group[rows.sample]])
    learner.backward((objective.loss + penalty).sum() / count)
    assert proposed.mean.grad is not None
    gradient = proposed.mean.grad.flatten(1).norm(dim=1) * steps.v_gain.abs() / learner.scale
    seen = Replay(rows=rows, drift=moved, objective=objective, penalty=penalty, gradient=gradient)
    return each(seen, torch.Tensor.detach)


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
