"""What is tried before training begins: the reward, and the clip range against rounding."""

from __future__ import annotations

import logging

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.diagnostics.memory import explain_shortage
from grpo_guard.diagnostics.noise_floor import WORRYING_SHARE, describe_floor, measure_noise_floor
from grpo_guard.lifecycle.reward_check import check_reward
from grpo_guard.rollout import transitions
from grpo_guard.session import Session
from grpo_guard.types import Rows, Trajectory, Velocity, map_tensors

_log = logging.getLogger(__name__)


def check_before_training(session: Session) -> None:
    """Test the reward if `selftest` is set, and warn if the clip range lies in the noise."""
    exp = session.exp
    device = session.ranks.device
    size = exp.batch_sizes.microbatch
    if exp.selftest:
        with explain_shortage(device, "reward"):
            check_reward(exp.reward, session.score)
    with explain_shortage(device, "rollout"):
        trajectory, rows = draw_probe(session, session.policy)
        floor = measure_noise_floor(
            session.policy, trajectory, rows, exp.clipping, session.limits(), size
        )
    if floor.share.max() > WORRYING_SHARE and session.ranks.is_first:
        _log.warning(describe_floor(floor, rows))


def draw_probe(session: Session, policy: Velocity) -> tuple[Trajectory, Rows]:
    """Draw a microbatch of the first iteration, with the rows of all of its trained steps."""
    size = session.exp.batch_sizes.microbatch
    batch = map_tensors(session.local_batch(0), lambda x: x[:size])
    trajectory = session.draw(0, batch, policy)
    no_advantage: Float[Tensor, " B"] = torch.zeros(len(trajectory.x), device=session.ranks.device)
    rows = transitions(trajectory, no_advantage)
    return trajectory, session.exp.old_policy(policy, trajectory, rows, size)
