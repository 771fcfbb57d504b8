"""The old policy: implied by the stored samples, or recomputed as training computes it."""

import dataclasses

import pytest
import torch
from toy import draw_trajectory, experiment

from grpo_guard.cost.ledger import Ledger
from grpo_guard.old_policy import OldMeans
from grpo_guard.old_policy.replay import ReplayedOldPolicy
from grpo_guard.old_policy.rollout import RolloutOldPolicy
from grpo_guard.rollout import transitions
from grpo_guard.session import prepare
from grpo_guard.train import accumulate
from grpo_guard.types import concatenate


def measure(session, trajectory, rows, size, old=OldMeans()):
    """Return the drift of rows that are replayed in microbatches of a size."""
    limits = session.limits()
    parts = [
        accumulate(session, trajectory, old, part, limits, len(rows)) for part in rows.split(size)
    ]
    return concatenate(parts).drift


@pytest.fixture
def started():
    """Return a session, its trajectory, and its rows."""
    session = prepare(experiment())
    trajectory = draw_trajectory(session)
    return session, trajectory, transitions(trajectory, torch.linspace(-2, 2, 32))


@pytest.mark.parametrize("size", [64, 5])
def test_a_replayed_policy_that_has_not_moved_has_ratio_exactly_one(started, size):
    session, trajectory, rows = started
    rows = ReplayedOldPolicy()(session.policy, trajectory, size).store(rows)
    drift = measure(session, trajectory, rows, size)
    assert not drift.along.any()
    assert not drift.square.any()


def test_both_measure_the_same_drift(started):
    session, trajectory, rows = started
    stored = ReplayedOldPolicy()(session.policy, trajectory, 32).store(rows)
    assert RolloutOldPolicy()(session.policy, trajectory, 32).store(rows) is rows
    with torch.no_grad():
        for p in session.policy.parameters():
            p += 1e-2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    implied = measure(session, trajectory, rows, 32)
    replayed = measure(session, trajectory, stored, 32)
    assert torch.allclose(implied.along, replayed.along, rtol=1e-3, atol=1e-7)
    assert torch.allclose(implied.square, replayed.square, rtol=1e-3)


def test_noise_between_rollout_and_training_cancels(started):
    """The policy answers a little differently in training than in the rollout, as in bfloat16."""
    session, trajectory, rows = started
    noisy = dataclasses.replace(trajectory, x=trajectory.x + 1e-3 * torch.randn(trajectory.x.shape))
    stored = ReplayedOldPolicy()(session.policy, noisy, 32).store(rows)
    assert measure(session, noisy, rows, 32).along.any()
    assert not measure(session, noisy, stored, 32).along.any()


def test_rows_keep_their_own_means(started):
    session, trajectory, rows = started
    stored = ReplayedOldPolicy()(session.policy, trajectory, 32).store(rows)
    picked = stored[torch.tensor([5, 3])]
    assert torch.equal(picked.old_mean, stored.old_mean[[5, 3]])
    assert concatenate(stored.split(7)).old_mean.shape == trajectory.x[rows.sample, rows.step].shape


def test_what_an_update_keeps_holds_no_old_means(started):
    """They are as large as the latents of all trained steps, and nobody reads them again."""
    session, trajectory, rows = started
    stored = ReplayedOldPolicy()(session.policy, trajectory, 32).store(rows)
    replay = accumulate(session, trajectory, OldMeans(), stored[:4], session.limits(), len(rows))
    assert replay.rows.old_mean is None


def test_both_state_their_cost():
    assert ReplayedOldPolicy().extra_forwards(updates=2) == 1
    assert ReplayedOldPolicy().stores_means
    assert RolloutOldPolicy().extra_forwards(updates=2) == 0
    assert not RolloutOldPolicy().stores_means


def test_replaying_holds_old_means_once(started):
    """Besides them, it needs what a microbatch's forward does."""
    session, trajectory, rows = started
    size = 4
    old = ReplayedOldPolicy()(session.policy, trajectory, size)
    means = trajectory.x[rows.sample, rows.step].nbytes
    with Ledger() as ledger:
        stored = old.store(rows)
    assert stored.old_mean.nbytes == means
    # A part has latents, their copies with times and prompts, velocities and means.
    assert ledger.peak < means + 12 * means * size / len(rows) + 4096
