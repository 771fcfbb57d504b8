"""Penalties: the distances as written, their gradients, and a reference that training leaves."""

import functools

import pytest
import torch
from toy import Model, draw_trajectory, experiment

from grpo_guard.kl.distance import flow_grpo, gaussian, velocity
from grpo_guard.kl.none import NoKl
from grpo_guard.kl.penalty import Penalty
from grpo_guard.rollout import propose, replay_steps, transitions
from grpo_guard.schema import ConfigError
from grpo_guard.session import prepare
from grpo_guard.train import iterate

DISTANCES = {
    "x": (gaussian, lambda dv, gain, s, dt: gain**2 * dv / (2 * s**2)),
    "x_flow_grpo": (flow_grpo, lambda dv, gain, s, dt: gain**2 * dv / (2 * (s / dt**0.5) ** 2)),
    "v": (velocity, lambda dv, gain, s, dt: dv),
}
"""Each distance with its formula: mean((v - v_ref)^2), v_gain, std, dt -> one value a row."""


def move_policy():
    """Return a model, its reference, and rows of a trajectory, under a policy that has moved."""
    session = prepare(experiment())
    trajectory = draw_trajectory(session)
    model = session.model
    reference = model.reference()
    with torch.no_grad():
        for p in model.policy.parameters():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    return model, reference, trajectory, transitions(trajectory, torch.zeros(32))


def gradient_of(values, model):
    parts = torch.autograd.grad(values.mean(), list(model.policy.parameters()))
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize(("distance", "formula"), DISTANCES.values(), ids=DISTANCES)
def test_penalties_are_distances_from_the_reference(distance, formula):
    model, reference, trajectory, rows = move_policy()
    model.reference = lambda: reference
    penalize = Penalty(beta=0.5, distance=distance).load(model)
    steps = trajectory.schedule[rows.step]
    x = trajectory.x[rows.sample, rows.step]
    condition = trajectory.condition[trajectory.batch.group[rows.sample]]
    penalty = penalize(propose(model.policy, steps, x, condition), trajectory, rows)
    v, v_ref = (p(x, steps.t, condition).double() for p in (model.policy, reference))
    dv = (v - v_ref).flatten(1).square().mean(1)
    gain, std, dt = steps.v_gain.double(), steps.std.double(), (steps.t - steps.t_next).double()
    expected = 0.5 * formula(dv, gain, std, dt)
    assert torch.allclose(penalty.double(), expected, rtol=1e-4)
    ours, theirs = gradient_of(penalty.double(), model), gradient_of(expected, model)
    assert (ours - theirs).norm() < 1e-4 * theirs.norm()
    assert all(p.grad is None for p in reference.parameters())


def test_the_gaussian_penalty_is_torchs_kl():
    model, reference, trajectory, rows = move_policy()
    steps = trajectory.schedule[rows.step]
    new = replay_steps(model.policy, trajectory, rows).mean
    old = replay_steps(reference, trajectory, rows).mean
    std = steps.std.reshape(-1, 1, 1, 1)
    normal = torch.distributions.Normal
    divergence = torch.distributions.kl_divergence(normal(new, std), normal(old, std))
    expected = divergence.flatten(1).mean(1)
    square = (new - old).flatten(1).square().mean(1)
    assert torch.allclose(gaussian(square, steps), expected, rtol=1e-4)


def test_no_penalty_makes_no_reference():
    def refuse():
        raise AssertionError("a reference was made")

    model = Model()
    model.reference = refuse
    session = prepare(experiment())
    trajectory = draw_trajectory(session)
    rows = transitions(trajectory, torch.zeros(32))
    step = replay_steps(session.policy, trajectory, rows)
    penalize = NoKl().load(model)
    assert not penalize(step, trajectory, rows).any()


def test_a_penalty_holds_the_policy_back():
    optim = functools.partial(torch.optim.SGD, lr=0.3)

    def train(kl):
        """Return how far six iterations move the weights, and the penalty of the last one."""
        session = prepare(experiment(kl=kl, optim=optim, max_grad_norm=1e9))
        start = torch.cat([p.detach().flatten().clone() for p in session.policy.parameters()])
        for iteration in range(6):
            session, metrics = iterate(session, iteration)
        end = torch.cat([p.detach().flatten() for p in session.policy.parameters()])
        return (end - start).norm().item(), metrics["loss/kl"].value

    free, no_penalty = train(NoKl())
    held, penalty = train(Penalty(beta=5.0, distance=velocity))
    assert held < 0.7 * free
    assert no_penalty == 0 < penalty


def test_a_beta_of_zero_is_refused():
    with pytest.raises(ConfigError, match=r"beta=0.0 is not positive; use kl=none for no penalty"):
        Penalty(beta=0.0, distance=velocity)


def test_a_penalty_states_its_cost():
    assert NoKl().reference_forwards == 0
    assert Penalty(beta=0.1, distance=velocity).reference_forwards == 1
