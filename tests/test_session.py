"""A session holds the placed policy and the clip range, and its settings stay as configured."""

import dataclasses
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from toy import ADAPTIVE, GUARD, D, Data, Model, experiment

from grpo_guard.parallel.learner import TorchLearner
from grpo_guard.pipeline.recipe import modules
from grpo_guard.schema import RunError, component
from grpo_guard.session import prepare
from grpo_guard.strategy.single import Single
from grpo_guard.train import iterate, train


class Wrapper(nn.Module):
    """A module around the policy that counts its calls."""

    def __init__(self, policy):
        super().__init__()
        self.module = policy
        self.calls = 0

    def forward(self, *arguments):
        self.calls += 1
        return self.module(*arguments)


@component
class Wraps(Single):
    """Places the policy inside another module, as the strategies of several processes do."""

    def place(self, policy, recipe, ranks):
        return TorchLearner(Wrapper(policy), recipe)


def test_the_policy_is_the_learners_in_rollout_and_replay():
    session = prepare(experiment(strategy=Wraps(device="cpu", threads=1)))
    assert session.policy is session.learner.policy
    assert session.policy is not session.model.policy
    calls = []
    session.model.policy.register_forward_hook(lambda *_: calls.append(1))
    iterate(session, 0)
    assert len(calls) == session.policy.calls > 0


def test_limits_are_the_configured_ones_times_the_multipliers():
    session = prepare(experiment())
    multipliers = (0.5, 1.0, 2.0, 3.0, 4.0)
    adapted = dataclasses.replace(session, range_multipliers=multipliers)
    configured = GUARD.limits(D, 5)
    for limit, unscaled, scaled in zip(configured, session.limits(), adapted.limits(), strict=True):
        assert torch.equal(unscaled, limit)
        assert torch.equal(scaled, limit * torch.tensor(multipliers, dtype=torch.float64))


def test_adaptation_changes_the_session_and_no_setting():
    """An iteration clips at the range that the one before it chose."""
    session = prepare(experiment(clipping=ADAPTIVE))
    _, high = ADAPTIVE.limits(D, 5)
    adapted, first = iterate(session, 0)
    _, second = iterate(adapted, 1)
    assert session.range_multipliers == ()
    assert len(adapted.range_multipliers) == 5
    assert adapted.exp is session.exp
    assert adapted.exp.clipping == ADAPTIVE
    for step, multiplier in enumerate(adapted.range_multipliers[:4]):
        key = f"clip/range/{step:02d}"
        assert multiplier != 1
        assert first[key].value == torch.expm1(high[step]).item()
        assert second[key].value == pytest.approx(torch.expm1(high[step] * multiplier).item())


def test_a_fixed_range_leaves_the_session_without_multipliers():
    adapted, _ = iterate(prepare(experiment()), 0)
    assert adapted.range_multipliers == ()


@component
class WatchedBackbone:
    """A backbone that notes how many weights of earlier models are alive when it is loaded."""

    inner: Any
    """The backbone that is loaded."""
    weights: list[weakref.ref]
    """The weights of all models so far."""
    alive: list[int]
    """One number per load."""

    def load(self, device):
        self.alive.append(sum(weight() is not None for weight in self.weights))
        model = self.inner.load(device)
        networks = modules(model.pipe).values()
        self.weights.extend(weakref.ref(p) for part in networks for p in part.parameters())
        return model


def test_nothing_of_a_job_is_left_when_the_next_one_is_built(tmp_path, choice):
    """The second job of a multirun would not fit beside the models of the first on a GPU."""
    backbone = WatchedBackbone(inner=choice("backbone", "sd3_tiny"), weights=[], alive=[])
    small = {"data": Data(prompts=2, repeats=2), "steps": 3, "microbatch": 2, "iterations": 1}
    exp = experiment(tmp_path, backbone=backbone, **small)
    session = prepare(exp)
    gc.collect()
    gc.disable()
    try:
        iterate(session, 0)
        del session
        assert not any(weight() is not None for weight in backbone.weights), "it is in a cycle"
        train(exp, {})  # saves a state, which leaves cycles of torch
        prepare(exp)
    finally:
        gc.enable()
    assert backbone.alive == [0, 0, 0]


def test_prompts_that_need_too_much_memory_are_named_as_such(monkeypatch):
    """Text encoders may need the most, and then no smaller microbatch helps."""

    def run_short(self, texts):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")

    session = prepare(experiment())
    monkeypatch.setattr(Model, "encode", run_short)
    with pytest.raises(RunError, match=r"the phase encoding prompts: .*backbone\.text_dtype"):
        iterate(session, 0)
    with pytest.raises(RunError, match=r"preparing the evaluation: .*backbone\.text_dtype"):
        prepare(experiment())
