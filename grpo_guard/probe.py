"""What is tried before training begins: the reward, the average, the clip range."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.diagnostics.memory import explain_shortage, free_cache, reset_peak
from grpo_guard.diagnostics.noise_floor import (
    WORRYING_SHARE,
    Probe,
    describe_floor,
    describe_rounding,
    make_probe,
    measure_noise_floor,
    measure_rounding,
    nudge,
    replay_in,
)
from grpo_guard.experiment import Experiment
from grpo_guard.lifecycle.reward_check import check_reward
from grpo_guard.old_policy.tangent import TangentOldPolicy
from grpo_guard.parallel.costs import WHOLE
from grpo_guard.rollout import transitions
from grpo_guard.session import Session
from grpo_guard.types import Velocity, map_tensors

_log = logging.getLogger(__name__)


def check_before_training(session: Session) -> None:
    """Test the reward if `selftest` is set, and warn of a clip range or an average that is idle."""
    exp = session.exp
    device = session.ranks.device
    if session.ranks.is_first:
        warn_of_idle_average(exp)
    if exp.selftest:
        with explain_shortage(device, "reward"):
            check_reward(exp.reward, session.score)
    with explain_shortage(device, "rollout"):
        probe = draw_probe(session, session.policy)
        floor = measure_noise_floor(probe, exp.clipping, session.limits())
        warning = warn_of_rounding(session, probe)
    if floor.share.max() > WORRYING_SHARE:
        warning = describe_floor(floor, probe.rows)
    if warning is not None and session.ranks.is_first:
        _log.warning(warning)
    # What was tried until here may take more memory than training does.
    reset_peak(device)


def warn_of_idle_average(exp: Experiment) -> None:
    """Say in one line that a run is too short for its average ever to move."""
    steps = exp.iterations * exp.updates
    if steps < exp.ema.every:
        _log.warning(
            "ema.every=%d is more than the optimizer steps of this run (%d): its evaluations and"
            " checkpoints keep the weights of the start; lower it, or choose ema=none",
            exp.ema.every,
            steps,
        )


def warn_of_rounding(session: Session, probe: Probe) -> str | None:
    """Say in one line that the clip acts on rounding once the weights move; None if it does not.

    A derivative says how far they move (docs/adr/0021). It needs the whole policy. Without a
    second update, no ratio differs from 1.
    """
    exp = session.exp
    rounds = session.model.dtype != torch.float32 and exp.old_policy.weight_copies == 0
    if exp.updates == 1 or not rounds or exp.strategy.shares != WHOLE:
        return None
    size = session.learner.lr
    try:
        rounding = measure_rounding(
            probe,
            partial(replay_in, TangentOldPolicy()),
            partial(nudge, session.learner.parameters, size),
            exp.clipping,
            session.limits(),
        )
    except (RuntimeError, MemoryError) as error:
        # The derivative needs more memory than training does, and a policy may have none.
        _log.info("whether the clip acts on rounding could not be tried: %s", error)
        free_cache(session.ranks.device)
        return None
    if rounding.is_small:
        return None
    dtype = str(session.model.dtype).removeprefix("torch.")
    return describe_rounding(rounding, dtype, size, exp.old_policy)


def draw_probe(session: Session, policy: Velocity) -> Probe:
    """Draw a microbatch of the first iteration, with the rows of all of its trained steps.

    It has two samples at least, because the spread of a step's rows is measured.
    """
    size = session.exp.batch_sizes.microbatch
    batch = map_tensors(session.local_batch(0), lambda x: x[: max(size, 2)])
    trajectory = session.draw(0, batch, policy)
    no_advantage: Float[Tensor, " B"] = torch.zeros(len(trajectory.x), device=session.ranks.device)
    rows = transitions(trajectory, no_advantage)
    probe = make_probe(session.exp.old_policy, policy, trajectory, rows, size)
    # A strategy that shares a policy's weights keeps what it gathered until a backward frees it.
    return replace(probe, with_gradient=session.exp.strategy.shares == WHOLE)
