"""An experiment with everything loaded: what it samples from, and how it is kept and gone on with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from grpo_guard import rng
from grpo_guard.backbone import Model
from grpo_guard.clipping import Clipping
from grpo_guard.data import Split, deal, plan
from grpo_guard.diagnostics.noise_floor import MARGIN, measure, verdict
from grpo_guard.ema import Averaged, within
from grpo_guard.eval import Evaluate, Proxy
from grpo_guard.experiment import Experiment
from grpo_guard.kl import Penalize
from grpo_guard.lifecycle import model_card as card
from grpo_guard.lifecycle.checkpoint import Snapshot, find_newest_state, read
from grpo_guard.lifecycle.scoring import Scoring, Together
from grpo_guard.logger import SILENT, Run, Sink
from grpo_guard.parallel.learner import Learner, Optimization
from grpo_guard.parallel.ranks import Ranks
from grpo_guard.reward import Scorer
from grpo_guard.rollout import rollout, transitions
from grpo_guard.sde import schedule
from grpo_guard.types import (
    Batch,
    Rows,
    Schedule,
    Trajectory,
    Velocity,
    map_tensors,
    record,
    require,
)
from grpo_guard.watch import Look

journal = logging.getLogger(__name__)


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
    look: Look
    evaluate: Evaluate
    penalize: Penalize
    clipping: Clipping
    split: Split
    start: int = 0
    skipped: int = 0
    best: float | None = None

    def schedule(self, iteration: int) -> Schedule:
        """The denoising steps of an iteration."""
        times = self.model.times(self.exp.steps)
        return map_tensors(
            schedule(self.exp.sde, times, (self.exp.seed, iteration)),
            lambda x: x.to(self.ranks.device),
        )


def prepare(exp: Experiment) -> Session:
    """Load every part."""
    ranks, split = exp.strategy.start(), exp.split()
    exp = replace(exp, output=ranks.broadcast(exp.output))
    torch.manual_seed(rng.key(exp.seed, "initialisation"))
    model, score = exp.backbone.load(ranks.device), exp.reward.load(ranks.device)
    proxy, penalize = Proxy(reward=exp.reward, score=score), exp.kl.load(model)
    evaluate = exp.eval.load(model, split, proxy, ranks, exp.iterations)
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
        look=exp.watch.load(ranks.device),
        evaluate=within(averaged, evaluate),
        penalize=penalize,
        clipping=exp.clipping,
        split=split,
    )


def opened(session: Session, config: Mapping[str, Any]) -> AbstractContextManager[Sink]:
    """Where the numbers go: the first process writes for all."""
    exp = session.exp
    run = Run(
        folder=Path(exp.output), config=config, iterations=exp.iterations, start=session.start
    )
    return exp.logger.open(run) if session.ranks.is_first else nullcontext(SILENT)


def exporter(session: Session, config: Mapping[str, Any]) -> Callable[[Path, int], None]:
    """Writes what was trained, with its card, into a folder."""

    def export(folder: Path, iterations: int) -> None:
        weights = within(session.averaged, session.learner.weights)()
        if session.ranks.is_first:
            session.model.save(folder, weights)
            card.write(
                folder / "README.md", config, Path(session.exp.output) / "metrics.jsonl", iterations
            )

    return export


def keep(session: Session) -> Snapshot:
    """The state of a session between two iterations; the rest follows from the experiment."""
    notes = {"reach": list(session.clipping.reach), "skipped": session.skipped}
    return Snapshot(
        tensors={**session.learner.state(), "average": session.averaged.state()}, notes=notes
    )


def resumed(session: Session) -> Session:
    """The session as `resume` wants it: at a state, or at the start where there is none."""
    exp, ranks = session.exp, session.ranks
    named = {"auto": lambda: find_newest_state(Path(exp.output)), "never": lambda: None}
    state = ranks.broadcast(
        named.get(exp.resume, lambda: Path(exp.resume))() if ranks.is_first else None
    )
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
    return replace(
        session,
        clipping=clipping,
        skipped=notes["skipped"],
        start=notes["iterations"],
        best=notes["best"],
    )


def probe(session: Session, policy: Velocity | None = None) -> tuple[Trajectory, Rows]:
    """A microbatch of the first iteration's samples, and the rows of all their trained steps, as training has them."""
    exp, policy = session.exp, policy or session.model.policy
    trajectory = sample(
        session, 0, map_tensors(asked(session, 0), lambda x: x[: exp.microbatch]), policy
    )
    rows = transitions(trajectory, torch.zeros(len(trajectory.x), device=session.ranks.device))
    return trajectory, exp.old_policy(policy, trajectory, rows, exp.microbatch)


def asked(session: Session, iteration: int) -> Batch:
    """This process's samples of an iteration."""
    exp, ranks, address = session.exp, session.ranks, (session.exp.seed, iteration)
    whole = plan(exp.data, session.split, *address)
    return map_tensors(
        deal(whole, address, exp.updates, ranks.rank, ranks.processes), lambda x: x.to(ranks.device)
    )


def sample(
    session: Session, iteration: int, batch: Batch, policy: Velocity, **more: Any
) -> Trajectory:
    """The trajectories of some samples of an iteration."""
    exp, model = session.exp, session.model
    return rollout(
        policy, session.schedule(iteration), batch, model.encode([p.text for p in batch.prompts]), model.shape,
        address=(exp.seed, iteration), microbatch=exp.microbatch, final_steps=exp.final_steps, **more,
    )  # fmt: skip


def scoring(session: Session, batch: Batch) -> Scoring | Together:
    """Decodes and scores a batch while it is drawn, or whole groups of it at the end where a reward compares."""
    exp, model, ranks = session.exp, session.model, session.ranks
    if exp.reward.compares and ranks.processes > 1:
        return Together(model.decode, session.score, session.look, batch, ranks)
    return Scoring(model.decode, session.score, session.look, batch, asynchronous=exp.asynchronous)


def warn(session: Session) -> None:
    """Log a line where ratios are noisy before anything is trained."""
    trajectory, rows = probe(session)
    floor = measure(
        session.model.policy, trajectory, rows, session.clipping, session.exp.microbatch
    )
    if floor.share.max() > MARGIN and session.ranks.is_first:
        journal.warning(verdict(floor, remedies(rows)))


def remedies(rows: Rows) -> tuple[str, ...]:
    """What lowers the noise floor, or rises above it, and is not done yet."""
    replay = ("old_policy=replay",) if rows.old_mean is None else ()
    return (*replay, "backbone.dtype=float32", "a wider clipping.high")
