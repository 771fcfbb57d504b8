"""What a ratio compares with: stored samples, or means computed again as training computes them."""

import dataclasses

import pytest
import torch
from toy import experiment, sampled

from grpo_guard.old_policy.replay import ReplayedOldPolicy
from grpo_guard.old_policy.rollout import RolloutOldPolicy
from grpo_guard.rollout import transitions
from grpo_guard.session import prepare
from grpo_guard.train import accumulate
from grpo_guard.types import concatenate


def log_ratios(session, trajectory, rows, size):
    parts = [accumulate(session, trajectory, part, session.limits(), len(rows)) for part in rows.split(size)]
    return concatenate(parts).drift


@pytest.fixture
def started():
    """A session, its trajectory, and its rows."""
    session = prepare(experiment())
    trajectory = sampled(session)
    return session, trajectory, transitions(trajectory, torch.linspace(-2, 2, 32))


@pytest.mark.parametrize("size", [64, 5])
def test_a_replayed_policy_that_has_not_moved_has_ratio_exactly_one(started, size):
    session, trajectory, rows = started
    rows = ReplayedOldPolicy()(session.model.policy, trajectory, rows, size)
    found = log_ratios(session, trajectory, rows, size)
    assert not found.along.any()
    assert not found.square.any()


def test_both_measure_the_same_drift(started):
    session, trajectory, rows = started
    kept = ReplayedOldPolicy()(session.model.policy, trajectory, rows, 32)
    assert RolloutOldPolicy()(session.model.policy, trajectory, rows, 32) is rows
    with torch.no_grad():
        for p in session.model.policy.parameters():
            p += 1e-2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    implied, replayed = (log_ratios(session, trajectory, r, 32) for r in (rows, kept))
    assert torch.allclose(implied.along, replayed.along, rtol=1e-3, atol=1e-7)
    assert torch.allclose(implied.square, replayed.square, rtol=1e-3)


def test_noise_between_rollout_and_training_cancels(started):
    """A policy that answers a little differently in training than it did in the rollout, as one in bfloat16 does."""
    session, trajectory, rows = started
    noisy = dataclasses.replace(trajectory, x=trajectory.x + 1e-3 * torch.randn(trajectory.x.shape))
    kept = ReplayedOldPolicy()(session.model.policy, noisy, rows, 32)
    assert log_ratios(session, noisy, rows, 32).along.any()
    assert not log_ratios(session, noisy, kept, 32).along.any()


def test_rows_keep_their_own_means(started):
    session, trajectory, rows = started
    kept = ReplayedOldPolicy()(session.model.policy, trajectory, rows, 32)
    picked = kept[torch.tensor([5, 3])]
    assert torch.equal(picked.old_mean, kept.old_mean[[5, 3]])
    assert concatenate(kept.split(7)).old_mean.shape == trajectory.x[rows.sample, rows.step].shape
