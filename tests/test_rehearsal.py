"""microbatch=auto: what fits is found before training, which is then that of the number."""

import pytest
import torch
from toy import Backbone, Model, experiment, load_policy, read_repeatable_metrics

from grpo_guard.old_policy import tangent
from grpo_guard.old_policy.replay import ReplayedOldPolicy
from grpo_guard.old_policy.tangent import TangentOldPolicy
from grpo_guard.rehearsal import hold_iteration, rehearse
from grpo_guard.schema import ConfigError, RunError, component
from grpo_guard.session import prepare
from grpo_guard.train import accumulate, train


class Tight(Model):
    """A model whose policy has memory for a few rows at a time."""

    def __init__(self, rows, *, trains):
        super().__init__()

        def take(module, inputs, v):
            if len(v) > rows and v.requires_grad == trains:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        self.policy.register_forward_hook(take)


@component
class TightBackbone(Backbone):
    """A backbone whose model is Tight."""

    rows: int
    """Rows that fit."""
    trains: bool
    """True: they must fit with a gradient. False: without one."""

    def load(self, device):
        return Tight(self.rows, trains=self.trains)


@pytest.mark.parametrize("trains", [False, True])
def test_auto_halves_until_it_fits_and_then_runs_as_the_number_does(tmp_path, caplog, trains):
    short = {"iterations": 1, "backbone": TightBackbone(rows=9, trains=trains)}
    for name, microbatch in {"auto": "auto", "number": 8}.items():
        (tmp_path / name).mkdir()
        train(experiment(tmp_path / name, microbatch=microbatch, **short), {})
    assert "microbatch=auto: 8 rows at a time fit the memory" in caplog.messages
    auto, number = tmp_path / "auto", tmp_path / "number"
    assert read_repeatable_metrics(auto) == read_repeatable_metrics(number)
    weights = load_policy(auto, 1), load_policy(number, 1)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_what_does_not_fit_at_all_is_one_line(tmp_path):
    exp = experiment(tmp_path, microbatch="auto", backbone=TightBackbone(rows=0, trains=True))
    with pytest.raises(RunError, match=r"^cpu is out of memory in the phase update: .* lower micr"):
        train(exp, {})


def test_a_rehearsal_holds_what_an_iteration_holds():
    session = prepare(experiment(old_policy=ReplayedOldPolicy()))
    latents, *moments = hold_iteration(session)
    # 32 samples of 5 steps and two ends, and the old means of 4 trained steps of each.
    assert latents.shape == (32 * 7 + 32 * 4, 3, 2, 2)
    parameters = [p.shape for p in session.learner.parameters for _ in range(2)]
    assert [moment.shape for moment in moments] == parameters


def test_a_rehearsal_computes_the_derivative_and_leaves_the_weights(monkeypatch):
    """It takes the most memory, and has nothing to compute before the weights move."""
    session = prepare(experiment(old_policy=TangentOldPolicy()))
    weights = session.learner.gather_weights()
    rows = []

    def differentiate(policy, weights, change, x, t, condition):
        rows.append(len(x))
        return torch.zeros_like(x)

    monkeypatch.setattr(tangent, "differentiate", differentiate)
    rehearse(session, accumulate)
    assert rows == [session.exp.batch_sizes.microbatch] * 2
    for name, weight in session.learner.gather_weights().items():
        assert torch.equal(weight, weights[name])


@pytest.mark.parametrize(
    ("microbatch", "line"),
    [
        (0, r"^microbatch=0 is not positive; give 1 or more, or auto$"),
        ("large", r"^microbatch='?large'? is no number; give 1 or more, or auto$"),
        (True, r"^microbatch=.*; give 1 or more, or auto$"),
    ],
)
def test_other_microbatches_are_refused(microbatch, line):
    with pytest.raises(ConfigError, match=line):
        experiment(microbatch=microbatch)
