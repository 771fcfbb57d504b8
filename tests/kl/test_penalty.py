"""Penalties: the divergences as written, their gradients, and a reference that training leaves alone."""

import functools

import pytest
import torch
from toy import Model, experiment, sampled

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


def displaced():
    """A model, its reference, and rows of a trajectory under a policy that has moved since."""
    session = prepare(experiment())
    trajectory, model = sampled(session), session.model
    reference = model.reference()
    with torch.no_grad():
        for p in model.policy.parameters():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    return model, reference, trajectory, transitions(trajectory, torch.zeros(32))


@pytest.mark.parametrize(("distance", "formula"), DISTANCES.values(), ids=DISTANCES)
def test_penalties_are_divergences_from_the_reference(distance, formula):
    model, reference, trajectory, rows = displaced()
    model.reference = lambda: reference
    penalize = Penalty(beta=0.5, distance=distance).load(model)
    steps, group = trajectory.schedule[rows.step], trajectory.batch.group[rows.sample]
    x, condition = trajectory.x[rows.sample, rows.step], trajectory.condition[group]
    found = penalize(propose(model.policy, steps, x, condition), steps, x, condition)
    v, fixed = (p(x, steps.t, condition).double() for p in (model.policy, reference))
    dv = (v - fixed).flatten(1).square().mean(1)
    wanted = 0.5 * formula(
        dv, steps.v_gain.double(), steps.std.double(), (steps.t - steps.t_next).double()
    )
    assert torch.allclose(found.double(), wanted, rtol=1e-4)
    ours, theirs = (
        torch.cat(
            [
                g.flatten()
                for g in torch.autograd.grad(values.mean(), list(model.policy.parameters()))
            ]
        )
        for values in (found.double(), wanted)
    )
    assert (ours - theirs).norm() < 1e-4 * theirs.norm()
    assert all(p.grad is None for p in reference.parameters())


def test_the_gaussian_penalty_is_torchs_kl():
    model, reference, trajectory, rows = displaced()
    steps, new = trajectory.schedule[rows.step], replay_steps(model.policy, trajectory, rows)
    old = replay_steps(reference, trajectory, rows)
    std = steps.std.reshape(-1, 1, 1, 1)
    normal = torch.distributions.Normal
    wanted = (
        torch.distributions.kl_divergence(normal(new.mean, std), normal(old.mean, std))
        .flatten(1)
        .mean(1)
    )
    assert torch.allclose(
        gaussian((new.mean - old.mean).flatten(1).square().mean(1), steps), wanted, rtol=1e-4
    )


def test_nothing_is_free():
    def refuse():
        raise AssertionError("a reference was asked for")

    model = Model()
    model.reference = refuse
    session = prepare(experiment())
    rows = transitions(trajectory := sampled(session), torch.zeros(32))
    step, condition = (
        replay_steps(session.model.policy, trajectory, rows),
        trajectory.condition[rows.sample // 8],
    )
    assert not NoKl().load(model)(step, trajectory.schedule[rows.step], step.mean, condition).any()


def test_a_penalty_holds_the_policy_back():
    optim = functools.partial(torch.optim.SGD, lr=0.3)

    def moved(kl):
        session = prepare(experiment(kl=kl, optim=optim, max_grad_norm=1e9))
        start = torch.cat([p.detach().flatten().clone() for p in session.model.policy.parameters()])
        for iteration in range(6):
            session, metrics = iterate(session, iteration)
        end = torch.cat([p.detach().flatten() for p in session.model.policy.parameters()])
        return (end - start).norm().item(), metrics["loss/kl"].value

    (free, nothing), (held, penalty) = moved(NoKl()), moved(Penalty(beta=5.0, distance=velocity))
    assert held < 0.7 * free
    assert nothing == 0 < penalty


def test_no_beta_is_refused():
    with pytest.raises(ConfigError, match=r"beta=0.0 is not positive; use kl=none for no penalty"):
        Penalty(beta=0.0, distance=velocity)
