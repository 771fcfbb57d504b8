"""The noise floor is 0 if replay is exact, and otherwise as large as the noise in the velocity."""

import functools
import logging
from dataclasses import replace

import pytest
import torch
from toy import GUARD, VANILLA, Backbone, D, Model, experiment

from grpo_guard.diagnostics import noise_floor
from grpo_guard.diagnostics.noise_floor import (
    describe_floor,
    describe_rounding,
    list_remedies,
    make_probe,
    measure_noise_floor,
    measure_rounding,
    nudge,
    replay_in,
    round_latents,
)
from grpo_guard.old_policy.replay import ReplayedOldPolicy
from grpo_guard.old_policy.rollout import RolloutOldPolicy
from grpo_guard.probe import draw_probe
from grpo_guard.schema import component
from grpo_guard.session import prepare
from grpo_guard.train import train


class NoisyModel(Model):
    """A model that adds new noise to its velocity in every forward.

    It stands for half precision, in which velocities depend on the batch.
    """

    def __init__(self, size):
        super().__init__()
        self.policy.register_forward_hook(lambda module, inputs, v: v + size * torch.randn(v.shape))


@component
class NoisyBackbone(Backbone):
    """A backbone whose model is NoisyModel."""

    size: float
    """Standard deviation of the noise."""

    def load(self, device):
        return NoisyModel(self.size)


def measure_floor(exp):
    """Return the noise floor of an experiment, its session, and the probe."""
    session = prepare(exp)
    probe = draw_probe(session, session.policy)
    return measure_noise_floor(probe, exp.clipping, session.limits()), session, probe


def test_an_exact_replay_has_no_floor():
    measured, _, probe = measure_floor(experiment())
    assert measured.steps == (0, 1, 2, 3)
    for values in (measured.raw, measured.norm, measured.share):
        assert not values.any()
    assert describe_floor(measured, probe.rows).endswith("exactly 0 at this batch shape")


@pytest.mark.parametrize(("clipping", "kind"), [(VANILLA, "raw"), (GUARD, "norm")])
def test_a_floor_is_the_size_of_the_noise(clipping, kind):
    """Compare with the median (0.674) and the 99th percentile (about 2.4) of |N(0, 1)|."""
    size = 1e-3
    exp = experiment(backbone=NoisyBackbone(size=size), clipping=clipping)
    measured, session, _ = measure_floor(exp)
    steps = session.schedule(0)
    # The standard deviation of mean(eps d); the rollout's forward is as noisy as the replay's.
    spread = 2**0.5 * size * steps.v_gain[:4].abs().double() / D**0.5
    expected = {"norm": spread, "raw": spread / steps.std[:4]}
    for name, values in expected.items():
        median, tail = getattr(measured, name).T
        assert torch.allclose(median, 0.674 * values, rtol=0.5)
        assert torch.allclose(tail, 2.4 * values, rtol=0.5)
    low, high = clipping.limits(D, 5)
    assert torch.allclose(
        measured.share, getattr(measured, kind)[:, 1] / torch.minimum(-low, high)[:4]
    )


@component
class CompiledBackbone(Backbone):
    """A backbone whose velocity is another one with a gradient, as compiled code's may be."""

    def load(self, device):
        model = Model()
        model.policy.register_forward_hook(
            lambda module, inputs, v: v + 1e-3 if torch.is_grad_enabled() else v
        )
        return model


@pytest.mark.parametrize("old_policy", [RolloutOldPolicy(), ReplayedOldPolicy()])
def test_what_an_update_computes_otherwise_than_a_rollout_is_in_the_floor(old_policy):
    measured, _, probe = measure_floor(
        experiment(backbone=CompiledBackbone(), old_policy=old_policy)
    )
    assert probe.with_gradient
    assert (measured.share > 0).all()
    assert not measured.raw.requires_grad


def test_storing_latents_in_half_precision_raises_the_floor():
    session = prepare(experiment())
    probe = draw_probe(session, session.policy)
    shares = [
        measure_noise_floor(
            replace(probe, trajectory=round_latents(probe.trajectory, dtype)),
            GUARD,
            session.limits(),
        ).share.max()
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    ]
    assert shares[0] == 0 < shares[1] < shares[2]


@pytest.mark.parametrize(
    ("size", "line"),
    [(3e-7, "is above the noise floor"), (1e-2, "the clip acts on noise; set old_policy=")],
)
def test_the_floor_is_described_in_one_line(size, line):
    measured, _, probe = measure_floor(experiment(backbone=NoisyBackbone(size=size)))
    message = describe_floor(measured, probe.rows)
    assert line in message
    assert f"at step {measured.steps[measured.worst]}" in message
    assert "\n" not in message


def test_a_remedy_that_is_in_use_is_not_suggested():
    def remedies(**changes):
        session = prepare(experiment(**changes))
        probe = draw_probe(session, session.policy)
        floor = measure_noise_floor(probe, session.exp.clipping, session.limits())
        return list_remedies(floor, probe.rows)

    assert "old_policy=replay" in remedies()
    assert "old_policy=replay" not in remedies(old_policy=ReplayedOldPolicy())


def test_the_remedy_names_the_setting_that_the_objective_has(choice):
    session = prepare(experiment(clipping=choice("clipping", "dppo")))
    probe = draw_probe(session, session.policy)
    floor = measure_noise_floor(probe, session.exp.clipping, session.limits())
    assert list_remedies(floor, probe.rows)[-1] == "a larger clipping.divergence"


class ShapeDependentModel(Model):
    """A model whose velocity changes with the number of rows: other in rollout than in replay."""

    def __init__(self, size):
        super().__init__()
        self.policy.register_forward_hook(lambda module, inputs, v: v + size * (len(v) == 32))


@component
class ShapeDependentBackbone(Backbone):
    """A backbone whose model is ShapeDependentModel."""

    size: float
    """What is added to the velocities of 32 rows."""

    def load(self, device):
        return ShapeDependentModel(self.size)


def test_replaying_the_old_policy_removes_the_effect_of_the_batch_shape():
    def share(**changes):
        session = prepare(experiment(backbone=ShapeDependentBackbone(size=1e-2), **changes))
        probe = draw_probe(session, session.policy)
        halved = make_probe(
            session.exp.old_policy, session.policy, probe.trajectory, probe.rows, 16
        )
        return measure_noise_floor(halved, GUARD, session.limits()).share.max()

    assert share() > 0
    assert share(old_policy=ReplayedOldPolicy()) == 0


class HalfModel(Model):
    """A model whose velocities are rounded to bfloat16 until it is widened."""

    def __init__(self, rounds):
        super().__init__()
        self.rounds = rounds
        self.policy.register_forward_hook(lambda module, inputs, v: self.round(v))

    def round(self, v):
        return v.bfloat16().float() if self.rounds else v

    def widen(self):
        self.rounds = False


@component
class HalfBackbone(Backbone):
    """A backbone whose model is HalfModel."""

    rounds: bool
    """Whether velocities are rounded."""

    def load(self, device):
        return HalfModel(self.rounds)


@pytest.mark.parametrize(
    ("rounds", "line"),
    [(True, "The clip acts on rounding"), (False, "The clip range means something")],
)
def test_rounding_shows_once_the_weights_have_moved(rounds, line):
    """The policy that has not moved replays exactly, whatever its dtype."""
    exp = experiment(backbone=HalfBackbone(rounds=rounds), clipping=GUARD)
    measured, session, probe = measure_floor(exp)
    assert not measured.share.any()
    weights = session.learner.gather_weights()

    def widen(probe):
        session.model.widen()
        return replay_in(ReplayedOldPolicy(), probe)

    rounding = measure_rounding(
        probe,
        widen,
        functools.partial(nudge, session.learner.parameters, 1e-4),
        exp.clipping,
        session.limits(),
    )
    assert (rounding.spread > 0).all()
    assert bool((rounding.error > 1e-6).all()) == rounds
    message = describe_rounding(rounding, "bfloat16", 1e-4, exp.old_policy)
    assert line in message
    assert "\n" not in message
    for name, weight in session.learner.gather_weights().items():
        assert torch.equal(weight, weights[name])


@pytest.mark.parametrize(("size", "warns"), [(0.0, False), (1e-2, True)])
def test_training_warns_before_it_begins(size, warns, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        train(experiment(tmp_path, backbone=NoisyBackbone(size=size), iterations=1), {})
    assert any("noise floor" in record.message for record in caplog.records) == warns


def test_a_nudge_that_fails_half_way_is_undone(monkeypatch):
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
    draw = noise_floor.rng.normal

    def fail_at_the_second(shape, keys, device):
        if keys == [("nudge", 1)]:
            raise torch.OutOfMemoryError
        return draw(shape, keys, device)

    monkeypatch.setattr(noise_floor.rng, "normal", fail_at_the_second)
    with pytest.raises(torch.OutOfMemoryError), nudge(parameters, 1e-2):
        pass
    assert all(torch.equal(p, torch.ones(2)) for p in parameters)


def test_the_spread_of_one_row_at_a_time_is_known():
    session = prepare(experiment(microbatch=1))
    rows = draw_probe(session, session.policy).rows
    assert all((rows.step == step).sum() == 2 for step in rows.step.unique())
