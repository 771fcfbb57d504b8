"""Rollouts can be reproduced from addresses, and their rows are dealt out evenly."""

import dataclasses
from collections import Counter

import pytest
import torch
from toy import SHAPE, draw_trajectory, experiment

from grpo_guard import rng
from grpo_guard.gaussian import advance
from grpo_guard.rng import noise
from grpo_guard.rollout import minibatches, propose, transitions
from grpo_guard.sde.dance import Dance
from grpo_guard.sde.window import Window
from grpo_guard.session import prepare


@pytest.fixture
def session():
    return prepare(experiment())


@pytest.fixture
def trajectory(session):
    return draw_trajectory(session)


def propose_step(session, trajectory, number):
    """Return the policy's Gaussian for every sample at a step, and the noise of that step."""
    at = torch.full_like(trajectory.batch.sample, number)
    condition = trajectory.condition[trajectory.batch.group]
    eps = noise(trajectory.address, trajectory.batch.sample, at, SHAPE)
    x = trajectory.x[:, number]
    with torch.no_grad():
        step = propose(session.policy, trajectory.schedule[at], x, condition)
    return step, eps


def test_a_proposal_is_linear_in_latent_and_velocity(session, trajectory):
    step, _ = propose_step(session, trajectory, 2)
    x = trajectory.x[:, 2]
    t = torch.full((32,), 0.6)
    v = session.policy(x, t, trajectory.condition[trajectory.batch.group])
    gains = trajectory.schedule[[2]]
    assert torch.allclose(step.mean, gains.x_gain * x + gains.v_gain * v, atol=1e-6)
    assert torch.equal(step.std, gains.std.expand(32))
    assert torch.equal(step.gain, -gains.v_gain.expand(32))


def test_steps_are_float32_whatever_the_policy_computes_in(session, trajectory):
    at = torch.zeros(32, dtype=torch.long)
    step = propose(
        lambda x, t, condition: x.half(),
        trajectory.schedule[at],
        trajectory.x[:, 0],
        trajectory.condition,
    )
    assert step.mean.dtype == torch.float32


def test_a_trajectory_is_its_proposals_under_regenerated_noise(session, trajectory):
    first = noise(trajectory.address, trajectory.batch.sample, torch.full((32,), rng.START), SHAPE)
    assert trajectory.x.shape == (32, 6, *SHAPE)
    assert torch.equal(trajectory.x[:, 0], first)
    for number in range(4):
        step, eps = propose_step(session, trajectory, number)
        assert torch.equal(trajectory.x[:, number + 1], advance(step, eps))
    last, _ = propose_step(session, trajectory, 4)
    assert torch.equal(trajectory.sample, last.mean)
    assert not trajectory.x.requires_grad


def test_outside_the_window_there_is_no_noise():
    session = prepare(experiment(sde=Dance(level=0.5, window=Window(first=1, last=3))))
    trajectory = draw_trajectory(session)
    for number, noisy in enumerate([False, True, True, False, False]):
        step, eps = propose_step(session, trajectory, number)
        expected = advance(step, eps) if noisy else step.mean
        assert torch.equal(trajectory.x[:, number + 1], expected)
        dt = trajectory.schedule.t[number] - trajectory.schedule.t_next[number]
        assert noisy or step.gain[0].item() == pytest.approx(dt.item())
    assert set(transitions(trajectory, torch.zeros(32)).step.tolist()) == {1, 2}


@pytest.mark.parametrize("microbatch", [1, 8, 20, 100])
def test_microbatches_do_not_matter(session, trajectory, microbatch):
    other = draw_trajectory(session, microbatch=microbatch)
    assert torch.allclose(other.x, trajectory.x, atol=1e-5)


def test_a_sample_does_not_depend_on_its_batch(session, trajectory):
    few = torch.tensor([30, 3, 17])
    batch = dataclasses.replace(trajectory.batch, group=trajectory.batch.group[few], sample=few)
    assert torch.allclose(draw_trajectory(session, batch=batch).x, trajectory.x[few], atol=1e-5)


def test_samples_and_iterations_have_their_own_noise(session, trajectory):
    assert len({x.sum().item() for x in trajectory.x[:, 0]}) == 32
    assert not torch.equal(draw_trajectory(session, iteration=1).x[:, 0], trajectory.x[:, 0])
    assert torch.equal(draw_trajectory(session).x, trajectory.x)


def test_every_trained_step_of_every_sample_is_a_row(trajectory):
    advantages = torch.arange(32.0)
    rows = transitions(trajectory, advantages)
    pairs = list(zip(rows.sample.tolist(), rows.step.tolist(), strict=True))
    assert pairs == [(sample, step) for sample in range(32) for step in range(4)]
    assert torch.equal(rows.advantage, advantages[rows.sample])


@pytest.mark.parametrize("count", [1, 7, 32])
@pytest.mark.parametrize("take", [1, 2, 3, 4])
def test_steps_per_sample_train_every_step_equally_often(trajectory, take, count):
    first = torch.arange(count)
    batch = dataclasses.replace(
        trajectory.batch, group=trajectory.batch.group[first], sample=first, total=count
    )
    part = dataclasses.replace(
        trajectory, x=trajectory.x[first], sample=trajectory.sample[first], batch=batch
    )
    rows = transitions(part, first.float(), take)
    per_step = Counter(rows.step.tolist())
    per_sample = Counter(rows.sample.tolist())
    assert max(per_step.values()) - min(per_step[step] for step in range(4)) <= 1
    assert per_sample == dict.fromkeys(range(count), take)
    assert len(set(zip(rows.sample.tolist(), rows.step.tolist(), strict=True))) == take * count
    assert torch.equal(rows.advantage, rows.sample.float())


def test_steps_of_a_sample_differ_between_iterations(session, trajectory):
    def pick_steps(trajectory):
        return transitions(trajectory, torch.zeros(32), 2).step.tolist()

    steps = [pick_steps(draw_trajectory(session, iteration)) for iteration in range(3)]
    assert steps[0] != steps[1] != steps[2]
    assert steps[0] == pick_steps(trajectory)


@pytest.mark.parametrize("updates", [1, 2, 4, 5])
def test_minibatches_deal_out_whole_samples(trajectory, updates):
    rows = transitions(trajectory, torch.zeros(32), 3)
    parts = minibatches(rows, trajectory, updates)
    samples = [set(part.sample.tolist()) for part in parts]
    assert len(parts) == updates
    assert sum(map(len, parts)) == len(rows)
    assert set.union(*samples) == set(range(32))
    assert sum(map(len, samples)) == 32
    assert max(map(len, samples)) - min(map(len, samples)) <= 1
    assert all(count == 3 for part in parts for count in Counter(part.sample.tolist()).values())


def test_minibatches_are_shuffled_by_the_iteration(session, trajectory):
    def samples_of_parts(trajectory):
        rows = transitions(trajectory, torch.zeros(32))
        return [set(part.sample.tolist()) for part in minibatches(rows, trajectory, 2)]

    samples = samples_of_parts(trajectory)
    assert samples == samples_of_parts(trajectory)
    assert samples != samples_of_parts(draw_trajectory(session, 1))
    assert samples[0] != set(range(16))


def test_which_steps_a_sample_trains_changes_with_the_iteration_and_the_sample(session):
    """Steps are dealt in turns that are shuffled anew, so no sample always trains the same ones."""
    picks = []
    for iteration in range(6):
        rows = transitions(draw_trajectory(session, iteration), torch.zeros(32), 2)
        picks.append(rows.step.view(32, 2).tolist())
    assert all(len({str(steps) for steps in iteration}) > 1 for iteration in picks)
    by_sample = list(zip(*picks, strict=True))
    assert all(len({str(steps) for steps in sample}) > 1 for sample in by_sample)
    # Samples 0 and 2 would share their steps for ever if turns were not shuffled: 2 turns x 2 of 4.
    assert any(iteration[0] != iteration[2] for iteration in picks)
    # Those that share their steps in one iteration do not share them in all.
    partners = {tuple(steps == iteration[0] for steps in iteration) for iteration in picks}
    assert len(partners) == len(picks)


@pytest.mark.parametrize("iteration", range(4))
def test_steps_are_dealt_as_before(session, iteration):
    """Runs that train some steps of each sample can be repeated by later versions."""
    trajectory = draw_trajectory(session, iteration)
    trained = trajectory.schedule.trained.nonzero().flatten().tolist()
    order = torch.randperm(len(trained), generator=rng.generator(*trajectory.address, "steps"))
    turns = torch.randperm(32, generator=rng.generator(*trajectory.address, "turns"))
    expected = [
        step
        for turn in turns.tolist()
        for step in sorted(trained[order[(2 * turn + k) % len(trained)]] for k in range(2))
    ]
    assert transitions(trajectory, torch.zeros(32), 2).step.tolist() == expected


def test_a_rollout_ends_from_the_last_stored_latents_and_time(session):
    finished = []

    class Watched:
        def stored_steps(self, steps):
            return steps[:3]

        def finish(self, policy, x, t, condition):
            finished.append((x, t))
            return x + 1

    trajectory = draw_trajectory(session, final_steps=Watched())
    assert trajectory.x.shape[1] == 4
    assert torch.equal(torch.cat([x for x, _ in finished]), trajectory.x[:, -1])
    assert torch.equal(trajectory.sample, trajectory.x[:, -1] + 1)
    assert {t.item() for _, t in finished} == {trajectory.schedule.t_next[2].item()}
