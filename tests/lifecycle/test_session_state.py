"""A state holds everything that changes between iterations, and resuming restores it."""

import dataclasses
import functools

import pytest
import torch
from toy import ADAPTIVE, GUARD, Backbone, Explosive, Model, experiment

from grpo_guard.ema.average import Average
from grpo_guard.lifecycle.checkpoint import Checkpoints
from grpo_guard.run_folder import open_run
from grpo_guard.schema import component
from grpo_guard.session import prepare, resume
from grpo_guard.train import iterate

KEPT = Checkpoints(every=1, keep=2, export_every=9, best="eval/proxy/grey", asynchronous=False)


def save(session, iteration, metrics):
    """Save the state after an iteration, as a run does; return the best value so far."""
    with open_run(session, {}) as run:
        run.evaluate(0)
        run.finish_iteration(session, iteration, metrics)
    return run.writer.best


@pytest.fixture
def exp(tmp_path):
    return experiment(tmp_path, checkpoint=KEPT, clipping=ADAPTIVE)


def test_skipped_updates_the_best_value_and_multipliers_are_restored(exp):
    session, metrics = iterate(prepare(exp), 0)
    session = dataclasses.replace(session, skipped=2, range_multipliers=(1.0, 2.0, 3.0, 4.0, 5.0))
    best = save(session, 0, metrics)
    assert best is not None
    again = resume(prepare(exp))
    assert (again.start, again.skipped, again.best) == (1, 2, best)
    assert again.range_multipliers == (1.0, 2.0, 3.0, 4.0, 5.0)


class HalfModel(Model):
    """A model that computes in float16, whose gradients are scaled."""

    dtype = torch.float16


@component
class HalfBackbone(Backbone):
    """A backbone whose model is HalfModel."""

    def load(self, device):
        return HalfModel()


def test_the_gradient_scale_is_restored(tmp_path):
    exp = experiment(tmp_path, checkpoint=KEPT, backbone=HalfBackbone())
    session, metrics = iterate(prepare(exp), 0)
    session.learner._scaler.update(2.0**7)
    save(session, 0, metrics)
    assert prepare(exp).learner.loss_scale != 2.0**7
    assert resume(prepare(exp)).learner.loss_scale == 2.0**7


def test_the_optimizer_is_restored(tmp_path):
    exp = experiment(tmp_path, checkpoint=KEPT, optim=functools.partial(torch.optim.Adam, lr=1e-2))
    session, metrics = iterate(prepare(exp), 0)
    save(session, 0, metrics)
    again = resume(prepare(exp))
    states = session.learner._optimizer.state.values()
    restored_states = again.learner._optimizer.state.values()
    for ours, theirs in zip(states, restored_states, strict=True):
        assert ours["step"] == theirs["step"] == 2
        assert torch.equal(ours["exp_avg"], theirs["exp_avg"])
        assert torch.equal(ours["exp_avg_sq"], theirs["exp_avg_sq"])


@pytest.mark.parametrize("resumes", [False, True])
def test_a_state_before_the_first_step_changes_nothing(resumes, tmp_path):
    """Both updates of the first iteration are skipped, as they may be in float16."""
    explosive = Explosive(at=list(range(4)))
    adam = functools.partial(torch.optim.Adam, lr=1e-2, weight_decay=0.1)
    exp = experiment(tmp_path, checkpoint=KEPT, backbone=explosive, optim=adam)
    alone, skipped = iterate(prepare(exp), 0)
    assert skipped["update/skipped"].value == 1
    alone, _ = iterate(alone, 1)
    session, metrics = iterate(prepare(exp), 0)
    save(session, 0, metrics)
    if resumes:
        session = resume(prepare(dataclasses.replace(exp, backbone=Backbone())))
        assert session.start == 1
    session, _ = iterate(session, 1)
    for ours, theirs in zip(session.learner.parameters, alone.learner.parameters, strict=True):
        assert torch.equal(ours, theirs)


def test_a_run_that_begins_from_a_state_has_its_own_learning_rate(tmp_path):
    exp = experiment(tmp_path, checkpoint=KEPT, optim=functools.partial(torch.optim.Adam, lr=1e-2))
    session, metrics = iterate(prepare(exp), 0)
    save(session, 0, metrics)
    slower = dataclasses.replace(exp, optim=functools.partial(torch.optim.Adam, lr=1e-3))
    again = resume(prepare(slower))
    assert (again.start, again.learner.lr) == (1, 1e-3)


def test_what_means_nothing_to_another_run_is_not_taken_over(exp):
    """The best value of another metric, and the multipliers of other steps or another range."""
    session, metrics = iterate(prepare(exp), 0)
    session = dataclasses.replace(session, range_multipliers=(1.0, 2.0, 3.0, 4.0, 5.0))
    save(session, 0, metrics)
    other = dataclasses.replace(KEPT, best="eval/proxy")
    again = resume(prepare(dataclasses.replace(exp, checkpoint=other, steps=9)))
    assert (again.start, again.best, again.range_multipliers) == (1, None, ())
    wider = dataclasses.replace(ADAPTIVE, high=2 * ADAPTIVE.high)
    for clipping in (GUARD, wider, dataclasses.replace(ADAPTIVE, name="another")):
        again = resume(prepare(dataclasses.replace(exp, clipping=clipping)))
        assert (again.start, again.range_multipliers) == (1, ())


def test_the_average_is_restored(tmp_path):
    average = Average(decay=0.5, every=1, on_cpu=False)
    exp = experiment(tmp_path, checkpoint=KEPT, ema=average)
    session, metrics = iterate(prepare(exp), 0)
    save(session, 0, metrics)
    again = resume(prepare(exp))
    assert again.averaged.steps == session.averaged.steps == 2
    for ours, theirs, weights in zip(
        again.averaged.average, session.averaged.average, session.learner.parameters, strict=True
    ):
        assert torch.equal(ours, theirs)
        assert not torch.equal(ours, weights)
