"""The average of the weights: its own recursion, which only evaluations and checkpoints see."""

import contextlib
import dataclasses
import logging

import pytest
import torch
from torch import nn
from toy import experiment

from grpo_guard.ema import within
from grpo_guard.ema.average import Average
from grpo_guard.ema.none import NoEma
from grpo_guard.schema import ConfigError
from grpo_guard.session import prepare
from grpo_guard.train import train


def take_steps(averaged, parameter, count):
    """Subtract 0, 1, 2, ... from the parameter, and update the average after each step."""
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    for value in range(count):
        parameter.grad = torch.full_like(parameter, float(value))
        optimizer.step()
        averaged.update()


@pytest.mark.parametrize("on_cpu", [False, True])
@pytest.mark.parametrize("every", [1, 3])
def test_the_average_follows_its_recursion(every, on_cpu):
    parameter = nn.Parameter(torch.zeros(4, dtype=torch.float32))
    averaged = Average(decay=0.5, every=every, on_cpu=on_cpu).follow([parameter])
    take_steps(averaged, parameter, 7)
    average, weight = 0.0, 0.0
    for n in range(1, 8):
        weight -= n - 1
        if n % every == 0:
            m = min(0.5, (1 + n) / (10 + n))
            average = m * average + (1 - m) * weight
    with averaged():
        assert torch.allclose(parameter, torch.full((4,), average))
    assert torch.equal(parameter, torch.full((4,), -21.0))


def test_weights_in_half_precision_have_an_average_in_float32():
    parameter = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    averaged = Average(decay=0.5, every=1, on_cpu=False).follow([parameter])
    take_steps(averaged, parameter, 1)
    with torch.no_grad():
        parameter.fill_(2.0)
    averaged.update()
    (average,) = averaged.average
    assert torch.allclose(average, torch.full((4,), 1 + 9 / 12))


def test_the_weights_come_back_after_a_failure():
    parameter = nn.Parameter(torch.zeros(4))
    averaged = Average(decay=0.9, every=1, on_cpu=False).follow([parameter])
    take_steps(averaged, parameter, 3)
    before = parameter.detach().clone()

    def fail():
        assert not torch.equal(parameter, before)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        within(averaged, fail)()
    assert torch.equal(parameter, before)


def newest_checkpoint(folder):
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    return torch.load(newest / "policy.pt")


def test_training_is_the_same_and_checkpoints_hold_the_average(tmp_path):
    exp = experiment(tmp_path / "plain")
    average = Average(decay=0.9, every=1, on_cpu=True)
    runs = {
        "plain": exp,
        "averaged": dataclasses.replace(exp, ema=average, output=str(tmp_path / "averaged")),
    }
    for name, run in runs.items():
        (tmp_path / name).mkdir()
        train(run, {})
    plain, averaged = (
        (tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in runs
    )
    assert len(plain) == len(averaged)
    weights = [newest_checkpoint(tmp_path / name)["map.weight"] for name in runs]
    assert not torch.equal(*weights)
    assert (weights[0] - weights[1]).abs().max() < 0.1


@pytest.mark.parametrize(("every", "warns"), [(6, False), (7, True)])
def test_a_run_that_is_too_short_for_its_average_says_so(every, warns, tmp_path, caplog):
    """Three iterations of two updates: the average never moves from where training began."""
    average = Average(decay=0.9, every=every, on_cpu=True)
    exp = experiment(tmp_path, ema=average)
    begin = {k: w.clone() for k, w in prepare(exp).model.policy.state_dict().items()}
    train(exp, {})
    stays = all(torch.equal(begin[k], w) for k, w in newest_checkpoint(tmp_path).items())
    assert stays == warns
    wanted = (
        "ema.every=7 is more than the optimizer steps of this run (6): its evaluations and"
        " checkpoints keep the weights of the start; lower it, or choose ema=none"
    )
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert warnings == [wanted] * warns


def test_weights_are_averaged_only_while_an_evaluation_is_due():
    """Two exchanges of all weights cost time, and a GPU may keep the average on the host."""
    session = prepare(experiment())
    exchanges = []

    @contextlib.contextmanager
    def averaged():
        exchanges.append("to the average")
        yield
        exchanges.append("back")

    evaluate = session.evaluate.func
    assert not evaluate(1, averaged=averaged).metrics
    assert exchanges == []
    assert evaluate(0, averaged=averaged).metrics
    assert exchanges == ["to the average", "back"]


def test_no_average_leaves_the_weights():
    parameter = nn.Parameter(torch.ones(2))
    averaged = NoEma().follow([parameter])
    assert within(averaged, lambda: parameter.sum().item())() == 2


@pytest.mark.parametrize(
    ("setting", "line"),
    [({"decay": 1.0}, "decay=1.0 is outside"), ({"every": 0}, "every=0 is not")],
)
def test_settings_out_of_range_are_refused(setting, line):
    with pytest.raises(ConfigError, match=line):
        Average(**{"decay": 0.9, "every": 8, "on_cpu": False} | setting)


def test_weights_that_are_not_here_are_refused():
    empty = nn.Parameter(torch.zeros(0))
    with pytest.raises(ConfigError, match="ema=average cannot average the shards of strategy=zero"):
        Average(decay=0.9, every=8, on_cpu=False).follow([empty])


def test_weights_of_which_some_are_not_here_are_refused():
    here, empty = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(0))
    with pytest.raises(ConfigError, match="ema=average cannot average the shards of strategy=zero"):
        Average(decay=0.9, every=8, on_cpu=False).follow([here, empty])


def test_the_average_states_its_copies():
    settings = {"decay": 0.9, "every": 8}
    assert Average(**settings, on_cpu=False).device_copies == 1
    assert Average(**settings, on_cpu=True).device_copies == 0
    assert NoEma().device_copies == 0


def test_the_average_is_kept_where_the_setting_says():
    elsewhere = nn.Parameter(torch.zeros(2, device="meta"))
    settings = {"decay": 0.9, "every": 8}
    [kept] = Average(**settings, on_cpu=False).follow([elsewhere]).average
    assert kept.device.type == "meta"
    # The other one is brought to the CPU, which fails here because "meta" holds no data.
    with pytest.raises(NotImplementedError, match="meta"):
        Average(**settings, on_cpu=True).follow([elsewhere])


def test_a_state_continues_the_average():
    parameter = nn.Parameter(torch.zeros(4))
    recipe = Average(decay=0.5, every=2, on_cpu=False)
    one = recipe.follow([parameter])
    take_steps(one, parameter, 5)
    state = {key: torch.as_tensor(value).clone() for key, value in one.state_dict().items()}
    other = recipe.follow([nn.Parameter(torch.full((4,), 9.0))])
    other.load_state_dict(state | {"steps": int(state["steps"])})
    assert sorted(state) == ["0", "steps"]
    assert other.steps == one.steps == 5
    assert torch.equal(other.average[0], one.average[0])
    other.parameters = one.parameters
    for averaged in (one, other):
        averaged.update()
    assert torch.equal(other.average[0], one.average[0])
