"""The noise floor: 0 where replay is exact, of the size of the noise where it is not, and told in one line."""

import logging

import pytest
import torch
from toy import GUARD, VANILLA, Backbone, D, Model, experiment

from grpo_guard.diagnostics.noise_floor import (
    describe_floor,
    list_remedies,
    measure_noise_floor,
    round_latents,
)
from grpo_guard.old_policy.replay import ReplayedOldPolicy
from grpo_guard.schema import component
from grpo_guard.session import draw_probe, prepare
from grpo_guard.train import train


class Restless(Model):
    """A model whose velocity depends on how often it was asked, as one in half precision depends on the batch."""

    def __init__(self, size):
        super().__init__()
        self.policy.register_forward_hook(lambda module, inputs, v: v + size * torch.randn(v.shape))


@component
class Noisy(Backbone):
    size: float

    def load(self, device):
        return Restless(self.size)


def floor(exp):
    session = prepare(exp)
    trajectory, rows = draw_probe(session, session.policy)
    measured = measure_noise_floor(
        session.policy, trajectory, rows, exp.clipping, session.limits(), 32
    )
    return measured, session, rows


def test_an_exact_replay_has_no_floor():
    measured, _, rows = floor(experiment())
    assert measured.steps == (0, 1, 2, 3)
    for values in (measured.raw, measured.norm, measured.share):
        assert not values.any()
    assert describe_floor(measured, rows).endswith("exactly 0 at this batch shape")


@pytest.mark.parametrize(("clipping", "kind"), [(VANILLA, "raw"), (GUARD, "norm")])
def test_a_floor_is_the_size_of_the_noise(clipping, kind):
    size = 1e-3
    measured, session, _ = floor(experiment(backbone=Noisy(size=size), clipping=clipping))
    steps = session.schedule(0)
    spread = (
        2**0.5 * size * steps.v_gain[:4].abs().double() / D**0.5
    )  # of mean(eps d), both forwards being noisy
    wanted = {"norm": spread, "raw": spread / steps.std[:4]}
    for name, values in wanted.items():
        median, tail = getattr(measured, name).T
        assert torch.allclose(median, 0.674 * values, rtol=0.5)
        assert torch.allclose(tail, 2.4 * values, rtol=0.5)
    low, high = clipping.limits(D, 5)
    assert torch.allclose(
        measured.share, getattr(measured, kind)[:, 1] / torch.minimum(-low, high)[:4]
    )


def test_storing_latents_in_half_precision_raises_the_floor():
    session = prepare(experiment())
    trajectory, rows = draw_probe(session, session.policy)
    shares = [
        measure_noise_floor(
            session.policy, round_latents(trajectory, dtype), rows, GUARD, session.limits(), 32
        ).share.max()
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    ]
    assert shares[0] == 0 < shares[1] < shares[2]


@pytest.mark.parametrize(
    ("size", "line"),
    [(3e-7, "is above the noise floor"), (1e-2, "the clip acts on noise; set old_policy=")],
)
def test_the_verdict(size, line):
    measured, _, rows = floor(experiment(backbone=Noisy(size=size)))
    message = describe_floor(measured, rows)
    assert line in message
    assert f"at step {measured.steps[measured.worst]}" in message
    assert "\n" not in message


def noisy_old(kind):
    """The remedies named after a rollout whose floor is high."""
    session = prepare(experiment(old_policy=kind) if kind else experiment())
    return list_remedies(draw_probe(session, session.policy)[1])


def test_a_remedy_that_is_in_force_is_not_named():
    assert "old_policy=replay" in noisy_old(None)
    assert "old_policy=replay" not in noisy_old(ReplayedOldPolicy())


class Shaped(Model):
    """A model whose velocity depends on whether it is being sampled or replayed: on the number of rows at a time."""

    def __init__(self, size):
        super().__init__()
        self.policy.register_forward_hook(lambda module, inputs, v: v + size * (len(v) == 32))


@component
class Halved(Backbone):
    size: float

    def load(self, device):
        return Shaped(self.size)


def test_replaying_the_old_policy_removes_what_the_batch_shape_does():
    def share(**changes):
        session = prepare(experiment(backbone=Halved(size=1e-2), **changes))
        trajectory, rows = draw_probe(session, session.policy)
        rows = session.exp.old_policy(session.policy, trajectory, rows, 16)
        return measure_noise_floor(
            session.policy, trajectory, rows, GUARD, session.limits(), 16
        ).share.max()

    assert share() > 0
    assert share(old_policy=ReplayedOldPolicy()) == 0


@pytest.mark.parametrize(("size", "warned"), [(0.0, False), (1e-2, True)])
def test_training_warns_before_it_begins(size, warned, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        train(experiment(tmp_path, backbone=Noisy(size=size), iterations=1), {})
    assert any("noise floor" in record.message for record in caplog.records) == warned
