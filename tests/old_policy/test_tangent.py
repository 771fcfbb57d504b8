"""The change of the means by a derivative: right in half precision, where differences are not."""

import functools
import logging

import pytest
import torch
from composing import compose_run
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from toy import GUARD, Backbone, Model, draw_trajectory, experiment, read_metrics
from toy import Policy as LinearPolicy

from grpo_guard.console import cli
from grpo_guard.diagnostics.noise_floor import measure_rounding, nudge, replay_in
from grpo_guard.old_policy import replay_against
from grpo_guard.old_policy.replay import ReplayedOldPolicy
from grpo_guard.old_policy.rollout import RolloutOldPolicy
from grpo_guard.old_policy.tangent import (
    LARGEST_TANGENT,
    TangentMeans,
    TangentOldPolicy,
    choose_scale,
)
from grpo_guard.probe import check_before_training, draw_probe
from grpo_guard.rollout import measure_drift, replay_steps, transitions
from grpo_guard.schema import ConfigError, component
from grpo_guard.session import prepare
from grpo_guard.strategy.fsdp import Fsdp
from grpo_guard.train import train

TANGENT = TangentOldPolicy()
SAME = ("grad_norm", "reward/total", "ratio_norm/std/02")
"""Metrics of every iteration."""
TINY = [
    *("logger=none", "output=unused", "clipping=guard", "kl=none"),
    *("data.prompts=2", "data.repeats=4", "updates=1", "microbatch=8", "steps=5"),
    *("steps_per_sample=null", "reward=statistics", "watch=none"),
    *("eval.prompts=2", "eval.pictures=2"),
]


class CurvedPolicy(LinearPolicy):
    """A velocity that is not linear in the weights."""

    def forward(self, x, t, condition):
        return super().forward(x, t, condition).tanh()


@component
class CurvedBackbone(Backbone):
    """The backbone of a CurvedPolicy."""

    def load(self, device):
        return Model(device, CurvedPolicy)


class RoundedModel(Model):
    """A model that computes its velocities in bfloat16."""

    dtype = torch.bfloat16

    def __init__(self, device):
        super().__init__(device)
        self.policy.register_forward_hook(lambda module, inputs, v: v.bfloat16())


@component
class RoundedBackbone(Backbone):
    """The backbone of a RoundedModel."""

    def load(self, device):
        return RoundedModel(device)


def start(**changes):
    session = prepare(experiment(**changes))
    trajectory = draw_trajectory(session)
    return session, trajectory, transitions(trajectory, torch.linspace(-2, 2, 32))


def drift_of(session, trajectory, rows, old):
    with torch.no_grad():
        step, rows = replay_against(old, session.policy, trajectory, rows)
    return measure_drift(step, trajectory, rows)


def test_a_policy_that_has_not_moved_has_ratio_exactly_one():
    session, trajectory, rows = start()
    drift = drift_of(session, trajectory, rows, TANGENT(session.policy, trajectory, 32))
    assert not drift.along.any()
    assert not drift.square.any()


def test_the_derivative_of_a_linear_policy_is_its_change():
    session, trajectory, rows = start()
    tangent, stored = (
        old_policy(session.policy, trajectory, 32) for old_policy in (TANGENT, ReplayedOldPolicy())
    )
    assert tangent.store(rows) is rows
    stored_rows = stored.store(rows)
    with nudge(session.learner.parameters, 1e-2):
        ours = drift_of(session, trajectory, rows, tangent)
        theirs = drift_of(session, trajectory, stored_rows, stored)
    assert torch.allclose(ours.along, theirs.along, rtol=1e-4, atol=1e-7)
    assert torch.allclose(ours.square, theirs.square, rtol=1e-4)
    assert ours.along.any()


def test_the_error_is_of_the_third_order():
    """Twice the step has eight times the error; a derivative at the old weights has four."""
    session, trajectory, rows = start(backbone=CurvedBackbone())
    tangent = TANGENT(session.policy, trajectory, 32)
    with torch.no_grad():
        old = replay_steps(session.policy, trajectory, rows).mean
    errors = []
    for size in (0.02, 0.04):
        with nudge(session.learner.parameters, size), torch.no_grad():
            new = replay_steps(session.policy, trajectory, rows).mean
            errors.append(float((tangent.measure_change(rows) - (new - old)).norm()))
    assert errors[1] / errors[0] == pytest.approx(8, rel=0.15)


def widen(model, probe):
    model.widen()
    return replay_in(ReplayedOldPolicy(), probe)


def prepare_tiny(*overrides):
    return prepare(cli.build(compose_run(*TINY, *overrides)))


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("backbone", ["sd3_tiny_lora", "flux_tiny"])
def test_half_precision_costs_a_share_of_the_move(backbone):
    """The difference of two velocities is wrong by more than the whole move."""
    errors = {}
    for name in ("tangent", "replay"):
        session = prepare_tiny(
            f"backbone={backbone}", "backbone.dtype=bfloat16", f"old_policy={name}"
        )
        rounding = measure_rounding(
            draw_probe(session, session.policy),
            functools.partial(widen, session.model),
            functools.partial(nudge, session.learner.parameters, 1e-4),
            session.exp.clipping,
            session.limits(),
        )
        errors[name] = float((rounding.error / rounding.spread).max())
    # These are 99th percentiles over standard deviations, in the worst step.
    assert errors["tangent"] < 0.7
    assert errors["replay"] > 10


@pytest.mark.parametrize(
    ("changes", "warns"),
    [
        ({"old_policy": ReplayedOldPolicy()}, True),
        ({"old_policy": TANGENT}, False),
        ({"old_policy": ReplayedOldPolicy(), "updates": 1}, False),
    ],
)
def test_training_warns_of_a_clip_that_acts_on_rounding(changes, warns, caplog):
    """The noise floor of a policy that has not moved says nothing of it."""
    with caplog.at_level(logging.WARNING):
        check_before_training(start_in_half_precision(**changes))
    lines = [record.message for record in caplog.records]
    assert any("bfloat16 changes the log-ratio" in line for line in lines) == warns
    assert any("set old_policy=tangent" in line for line in lines) == warns


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, NotImplementedError])
def test_a_derivative_that_cannot_be_taken_ends_no_run(error, monkeypatch, caplog):
    def fail(*arguments):
        raise error("not here")

    session = start_in_half_precision(old_policy=ReplayedOldPolicy())
    weights = session.learner.gather_weights()
    monkeypatch.setattr(TangentMeans, "measure_change", fail)
    with caplog.at_level(logging.INFO):
        check_before_training(session)
    assert any("could not be tried: not here" in record.message for record in caplog.records)
    after = session.learner.gather_weights()
    assert all(torch.equal(after[name], weight) for name, weight in weights.items())


def start_in_half_precision(**changes):
    """Prepare a session that computes in bfloat16, with steps of 1e-4."""
    optim = functools.partial(torch.optim.AdamW, lr=1e-4)
    settings = {"clipping": GUARD, "optim": optim, "backbone": RoundedBackbone()} | changes
    return prepare(experiment(**settings))


class HalfPolicy(LinearPolicy):
    """A velocity that is computed in float16, as autocast does it."""

    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.map.weight)

    def forward(self, x, t, condition):
        inputs = x.flatten(1).half()
        weight = self.map.weight[:, : inputs.shape[1]]
        return (inputs @ weight.T.half()).view_as(x)


@component
class HalfBackbone(Backbone):
    """The backbone of a HalfPolicy."""

    def load(self, device):
        return Model(device, HalfPolicy)


class CountLooks(TorchDispatchMode):
    """Counts how often a number is read, for each of which a GPU is waited for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_gpu_is_waited_for_once_however_many_weights_there_are():
    changes = [torch.tensor([0.0, -(2.0**-n)]) for n in range(8, 40)]
    with CountLooks() as looks:
        scale = choose_scale(iter(changes))
    assert scale * 2.0**-8 == LARGEST_TANGENT
    assert looks.count == 1
    assert choose_scale([]) == choose_scale([torch.zeros(3)]) == 0


def test_float16_does_not_lose_the_smallest_steps():
    """A change of 1e-9 lies below what float16 holds."""
    session, trajectory, rows = start(backbone=HalfBackbone())
    tangent = TANGENT(session.policy, trajectory, 32)
    x = trajectory.x[rows.sample, rows.step].flatten(1)
    with nudge(session.learner.parameters, 1e-9), torch.no_grad():
        exact = x @ session.policy.map.weight[:, : x.shape[1]].T
        change = tangent.measure_change(rows).flatten(1)
    exact = trajectory.schedule[rows.step].v_gain[:, None] * exact
    assert exact.abs().max() > 0
    assert (change - exact).norm() < 1e-3 * exact.norm()


def test_compiled_blocks_are_differentiated_too():
    session, trajectory, rows = start()
    tangent = TANGENT(session.policy, trajectory, 32)
    with nudge(session.learner.parameters, 1e-2):
        eager = tangent.measure_change(rows)
        session.policy.map.compile(backend="eager", fullgraph=True)
        assert torch.equal(tangent.measure_change(rows), eager)


def test_a_run_in_float32_is_that_of_the_rollouts_policy(tmp_path):
    rows = []
    for name, old_policy in (("rollout", RolloutOldPolicy()), ("tangent", TANGENT)):
        (tmp_path / name).mkdir()
        train(experiment(tmp_path / name, old_policy=old_policy, iterations=3), {})
        rows.append(read_metrics(tmp_path / name))
    for expected, row in zip(*rows, strict=True):
        assert set(row) == set(expected)
        for key in SAME:
            if key in row or row["iteration"] < 3:  # the last row is an evaluation
                assert row[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-7), key


def test_shards_are_refused():
    fsdp = Fsdp(processes=2, replicas=1, reduce="update", offload=False, timeout=60.0, threads=1)
    with pytest.raises(ConfigError, match=r"old_policy=tangent needs the whole policy"):
        experiment(old_policy=TANGENT, strategy=fsdp)


def test_it_states_its_cost():
    assert TANGENT.extra_forwards(updates=1) == 0
    assert TANGENT.extra_forwards(updates=2) == 1
    assert TANGENT.extra_forwards(updates=4) == 1.5
    assert not TANGENT.stores_means
    assert TANGENT.weight_copies == 1


def test_rows_hold_the_old_means_that_it_found():
    """What is kept of an iteration can then be verified."""
    session, trajectory, rows = start()
    tangent = TANGENT(session.policy, trajectory, 32)
    with nudge(session.learner.parameters, 1e-2), torch.no_grad():
        step, known = replay_against(tangent, session.policy, trajectory, rows)
        change = tangent.measure_change(rows)
    assert torch.allclose(step.mean - known.old_mean, change, rtol=0, atol=1e-6)
