"""Chooses how many rows are forwarded at a time (microbatch=auto) by trying it before training."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.clipping import Limits
from grpo_guard.diagnostics.memory import explain_shortage, free_cache
from grpo_guard.diagnostics.noise_floor import nudge
from grpo_guard.experiment import AUTO
from grpo_guard.lifecycle.trajectory import KeepNothing
from grpo_guard.old_policy import OldMeans
from grpo_guard.rollout import transitions
from grpo_guard.session import Session
from grpo_guard.shortage import is_shortage
from grpo_guard.types import Replay, Rows, Trajectory, map_tensors

Accumulate = Callable[[Session, Trajectory, OldMeans, Rows, Limits, int], Replay]
"""`train.accumulate`: adds the gradient of a microbatch."""
MOMENTS = 2
"""Tensors as large as its parameter that an optimizer like Adam adds at its first step."""

_log = logging.getLogger(__name__)


def fit_microbatch(session: Session, accumulate: Accumulate) -> Session:
    """Return the session with a microbatch that fits the memory, if the setting is auto.

    Begins with the largest one that `BatchSizes.largest` allows, and halves it until a rehearsal
    fits. The run is then that of the chosen number. Raises RunError if not even one row fits.
    """
    if session.exp.microbatch != AUTO:
        return session
    sizes = session.exp.batch_sizes
    with explain_shortage(session.ranks.device, "update"):
        while not _fits(session, sizes.microbatch, accumulate):
            sizes = sizes.halved()
    # A line at the level of a warning is one that users see.
    _log.warning("microbatch=auto: %d rows at a time fit the memory", sizes.microbatch)
    return _with_microbatch(session, sizes.microbatch)


def _fits(session: Session, microbatch: int, accumulate: Accumulate) -> bool:
    """Return whether a rehearsal fits; the error is raised if one row does not."""
    rehearsing = replace(_with_microbatch(session, microbatch), keeper=KeepNothing())
    try:
        rehearse(rehearsing, accumulate)
        fits = True
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if microbatch == 1 or not is_shortage(error):
            raise
        fits = False
    finally:
        for parameter in session.learner.parameters:
            parameter.grad = None
    # What the rehearsal held is freed only now that its error, which knows its frames, is gone.
    gc.collect()
    free_cache(session.ranks.device)
    return fits


def rehearse(session: Session, accumulate: Accumulate) -> None:
    """Draw, decode and replay a microbatch beside the tensors that a whole iteration holds.

    Pictures that wait for their group and what rewards need are not held. It changes nothing: no
    optimizer steps, and the gradients are those of no advantage.
    """
    exp = session.exp
    microbatch = exp.batch_sizes.microbatch
    held = hold_iteration(session)
    batch = map_tensors(session.local_batch(0), lambda x: x[:microbatch])
    trajectory = session.draw(0, batch, session.policy, on_latents=session.model.decode)
    advantages: Float[Tensor, " B"] = torch.zeros(len(trajectory.x), device=session.ranks.device)
    rows = transitions(trajectory, advantages, exp.steps_per_sample)
    rows = rows[torch.arange(microbatch, device=session.ranks.device)]
    old = exp.old_policy(session.policy, trajectory, microbatch)
    rows = old.store(rows)
    # A derivative is computed once the weights have moved, and takes the most memory.
    moved = exp.old_policy.weight_copies > 0
    step = nudge(session.learner.parameters, session.learner.lr) if moved else nullcontext()
    with step:
        # The second microbatch meets the gradients that the first one leaves.
        for last in (False, True):
            session.learner.begin_microbatch(last=last)
            accumulate(session, trajectory, old, rows, session.limits(), len(rows))
    del held


def hold_iteration(session: Session) -> list[Tensor]:
    """Allocate as much as an iteration holds: latents, old means and, at first, the moments."""
    exp = session.exp
    sizes = exp.batch_sizes
    device = session.ranks.device
    shape = session.model.shape
    # A path has the start, the steps and, apart, the last latents.
    latents = sizes.samples_here * (exp.steps + 2)
    if exp.old_policy.stores_means:
        latents += sizes.rows_per_update * sizes.updates
    held = [torch.empty(latents, *shape, device=device)]
    if session.start == 0:
        trained = session.learner.parameters
        held += [torch.empty_like(p) for p in trained for _ in range(MOMENTS)]
    return held


def _with_microbatch(session: Session, microbatch: int) -> Session:
    return replace(session, exp=replace(session.exp, microbatch=microbatch))
