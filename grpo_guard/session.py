"""An experiment with everything loaded, and the state that changes between iterations."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from grpo_guard import rng
from grpo_guard.backbone import Model
from grpo_guard.clipping import Limits, Multipliers, adapt, scale_limits
from grpo_guard.data import Split, deal, plan, require_shared_prompts
from grpo_guard.diagnostics.memory import explain_shortage, reset_peak
from grpo_guard.diagnostics.not_finite import count_skipped, write_broken_rows
from grpo_guard.ema import Averaged
from grpo_guard.eval import Evaluate, Proxy
from grpo_guard.experiment import Experiment
from grpo_guard.kl import Penalize
from grpo_guard.lifecycle.checkpoint import Snapshot
from grpo_guard.lifecycle.scoring import BatchScorer, StreamingScorer, WholeGroupScorer
from grpo_guard.lifecycle.states import choose_state, read_state
from grpo_guard.lifecycle.trajectory import Keeper, open_keeper
from grpo_guard.metrics import Metrics
from grpo_guard.parallel.learner import Learner, Optimization
from grpo_guard.parallel.ranks import Ranks
from grpo_guard.reward import Scorer, load_scorer
from grpo_guard.rollout import rollout
from grpo_guard.schema import RunError, record, require
from grpo_guard.sde import schedule
from grpo_guard.types import (
    Batch,
    Replay,
    Schedule,
    Trajectory,
    Velocity,
    concatenate,
    map_tensors,
)
from grpo_guard.watch import Observe

_log = logging.getLogger(__name__)


@record
class Session:
    """An experiment with everything loaded, and the state that changes between iterations.

    All settings of a run come from `exp` here: `prepare` has made it the same on all processes.
    """

    exp: Experiment
    """The settings and parts of the run, the same on all processes."""
    ranks: Ranks
    """The processes of the run."""
    model: Model
    """The loaded backbone."""
    learner: Learner
    """The trained policy with its optimizer, as the strategy placed it."""
    averaged: Averaged
    """The moving average of the weights."""
    score: Scorer
    """The loaded reward."""
    observe: Observe
    """What is measured of every picture beside the reward."""
    evaluate: Evaluate
    """Evaluates the policy that enters an iteration, with the averaged weights."""
    penalize: Penalize
    """The KL penalty."""
    keeper: Keeper
    """Keeps what one iteration uses, if the settings say so."""
    split: Split
    """Prompts to train on, and prompts held out."""
    start: int = 0
    """First iteration of this process: above 0 in a run that was resumed."""
    range_multipliers: Multipliers = ()
    """Factors of the clip range, one per denoising step, as adaptation chose them."""
    skipped: int = 0
    """Updates skipped in a row because their gradient was not finite."""
    best: float | None = None
    """Highest value so far of the metric that chooses the best checkpoint; None: no value yet."""

    @property
    def policy(self) -> Velocity:
        """The policy that samples and is replayed; one function for both."""
        policy: Velocity = self.learner.policy
        return policy

    def schedule(self, iteration: int) -> Schedule:
        """Return the denoising steps of an iteration."""
        exp = self.exp
        steps = schedule(exp.sde, self.model.times(exp.steps), (exp.seed, iteration))
        return map_tensors(steps, lambda x: x.to(self.ranks.device))

    def configured_limits(self) -> Limits:
        """Return the limits of the log-ratio that the settings give."""
        return self.exp.clipping.limits(math.prod(self.model.shape), self.exp.steps)

    def limits(self) -> Limits:
        """Return the limits of the log-ratio in this iteration, on the device."""
        low, high = scale_limits(self.configured_limits(), self.range_multipliers)
        return low.to(self.ranks.device), high.to(self.ranks.device)

    def local_batch(self, iteration: int) -> Batch:
        """Return this process's samples of an iteration."""
        exp = self.exp
        ranks = self.ranks
        whole = plan(exp.data, self.split, exp.seed, iteration)
        own = deal(whole, (exp.seed, iteration), exp.updates, ranks.rank, ranks.processes)
        return map_tensors(own, lambda x: x.to(ranks.device))

    def draw(self, iteration: int, batch: Batch, policy: Velocity, **options: Any) -> Trajectory:
        """Draw the samples of a batch; `options` are further arguments of `rollout`."""
        exp = self.exp
        with explain_shortage(self.ranks.device, "encoding prompts"):
            condition = self.model.encode([prompt.text for prompt in batch.prompts])
        return rollout(
            policy,
            self.schedule(iteration),
            batch,
            condition,
            self.model.shape,
            address=(exp.seed, iteration),
            microbatch=exp.batch_sizes.microbatch,
            final_steps=exp.final_steps,
            **options,
        )

    def open_scorer(self, batch: Batch) -> BatchScorer:
        """Make the scorer of a batch; a reward that compares pictures needs its groups whole."""
        exp = self.exp
        decode = self.model.decode
        if exp.reward.compares and self.ranks.processes > 1:
            return WholeGroupScorer(decode, self.score, self.observe, batch, self.ranks)
        return StreamingScorer(
            decode, self.score, self.observe, batch, asynchronous=exp.asynchronous
        )


def prepare(exp: Experiment) -> Session:
    """Load every part of an experiment and meet the other processes."""
    split = exp.split()
    ranks = exp.strategy.start()
    exp = replace(exp, output=ranks.broadcast(exp.output))
    require_shared_prompts(split, ranks)
    device = ranks.device
    # What an earlier run of this process held must be gone. torch's state dicts leave cycles, which
    # keep its policy until they are collected.
    gc.collect()
    reset_peak(device)
    torch.manual_seed(rng.key(exp.seed, "initialisation"))
    with explain_shortage(device, "loading the model"):
        model = exp.backbone.load(device)
    with explain_shortage(device, "loading the reward"):
        score = load_scorer("reward", exp.reward, device)
        observe = exp.watch.load(device)
    with explain_shortage(device, "loading the model"):
        # The reference is taken before anything is trained or placed.
        penalize = exp.kl.load(model)
    proxy = Proxy(reward=exp.reward, score=score)
    with explain_shortage(device, "preparing the evaluation"):
        evaluate = exp.eval.load(model, split, proxy, ranks, exp.iterations)
    optimization = Optimization(optim=exp.optim, max_norm=exp.max_grad_norm, dtype=model.dtype)
    with explain_shortage(device, "loading the model"):
        learner = exp.strategy.place(model.policy, optimization, ranks)
        averaged = exp.ema.follow(learner.parameters)
    return Session(
        exp=exp,
        ranks=ranks,
        model=model,
        learner=learner,
        averaged=averaged,
        score=score,
        observe=observe,
        evaluate=partial(evaluate, averaged=averaged),
        penalize=penalize,
        keeper=open_keeper(exp.keep_trajectory, Path(exp.output), ranks, penalize.reference),
        split=split,
    )


def snapshot(session: Session) -> Snapshot:
    """Return the state of a session between two iterations; the rest follows from its settings."""
    tensors = {**session.learner.state_dict(), "average": session.averaged.state_dict()}
    notes = {
        "reach": list(session.range_multipliers),
        "reach_of": describe_range(session),
        "skipped": session.skipped,
        "best_metric": session.exp.checkpoint.best,
        "prompts": dict(session.split.hashes),
    }
    return Snapshot(tensors=tensors, notes=notes)


def describe_range(session: Session) -> list[Any]:
    """Return, as JSON can hold it, what the multipliers of the clip range belong to."""
    low, high = session.configured_limits()
    return [session.exp.clipping.name, low.tolist(), high.tolist()]


def require_same_prompts(session: Session, before: Mapping[str, str]) -> None:
    """Raise ConfigError if the prompts have changed since a state of this run, with these hashes.

    Their file can change while all settings stay as they are.
    """
    now = session.split.hashes
    changed = [name for name in now if before[name] != now[name]]
    require(
        not changed,
        f"{session.split.files or 'data'}: the {' and '.join(changed)} prompts are not those that"
        f" the run in output={session.exp.output} had so far; restore them, or choose another"
        " folder and start there from a state of that run with resume=STATE",
    )


def resume(session: Session) -> Session:
    """Continue from the state that the setting `resume` names, or start anew if there is none."""
    exp = session.exp
    newest = choose_state(exp.resume, Path(exp.output)) if session.ranks.is_first else None
    state = session.ranks.broadcast(newest)
    if state is None:
        return session
    with explain_shortage(session.ranks.device, "loading the model"):
        tensors = snapshot(session).tensors
    notes = read_state(state, tensors)
    done = notes["iterations"]
    require(
        done <= exp.iterations,
        f"iterations={exp.iterations} is less than the {done} that {state} has; give more",
    )
    continues = exp.resume == "auto"
    if continues:
        require_same_prompts(session, notes.get("prompts", session.split.hashes))
    # A state of a run with other settings has ranges that mean nothing here, and the best
    # checkpoint of another run is not in this folder.
    own_range = describe_range(session)
    same_range = (
        exp.clipping.adaptation.follows_ratios
        and len(notes["reach"]) == exp.steps
        and notes.get("reach_of", own_range) == own_range
    )
    same_metric = notes.get("best_metric", exp.checkpoint.best) == exp.checkpoint.best
    session.learner.load_state_dict(tensors)
    session.averaged.load_state_dict(tensors["average"])
    _log.info("resuming after iteration %d, from %s", done, state)
    return replace(
        session,
        start=done,
        range_multipliers=tuple(notes["reach"]) if same_range else (),
        skipped=notes["skipped"],
        best=notes["best"] if continues and same_metric else None,
    )


def limit_skips(
    session: Session, updates: Sequence[Metrics], replays: Sequence[Replay], trajectory: Trajectory
) -> Session:
    """Return the session with its count of skipped updates.

    Raises RunError if too many updates in a row had a gradient that is not finite.
    """
    exp = session.exp
    skipped, most = count_skipped(session.skipped, updates)
    if most > exp.max_skipped:
        file = Path(exp.output) / f"not_finite_{session.ranks.rank}.json"
        write_broken_rows(file, concatenate(replays), trajectory)
        raise RunError(
            f"{most} updates in a row had a gradient that is not finite, over"
            f" max_skipped={exp.max_skipped}; lower optim.lr, or choose another backbone.dtype"
            f" ({file} lists the steps and samples)"
        )
    return replace(session, skipped=skipped)


def adapt_range(session: Session, replay: Replay, schedule: Schedule) -> Session:
    """Return the session with the next clip range, which follows the rows of all processes."""
    everyone = session.ranks.all_gather_rows(replay, "end of an update")
    multipliers = adapt(session.exp.clipping, session.range_multipliers, everyone, schedule)
    return replace(session, range_multipliers=multipliers)
