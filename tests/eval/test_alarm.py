"""The alarm comes where a gold falls while the proxy rises, and never in a run that learns."""

import dataclasses
import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from toy import experiment

from grpo_guard.eval.alarm import KEY, Alarm, Watch
from grpo_guard.experiment import Experiment
from grpo_guard.lifecycle.states import list_states
from grpo_guard.metrics import Mean, scalar
from grpo_guard.schema import ConfigError
from grpo_guard.session import prepare
from grpo_guard.train import train

ROOT = Path(__file__).resolve().parents[2]
RECORDED = json.loads((Path(__file__).parent / "long_runs.json").read_text(encoding="utf-8"))
"""Evaluations of two recorded runs of the embedded default, seed 0."""
DEFAULT = instantiate(OmegaConf.load(ROOT / "conf/eval/heldout.yaml").alarm, _convert_="all")


def rows_of(name):
    """Return the evaluations of a recorded run under their metric keys."""
    keys = ["iteration", "eval/proxy/pickscore", "eval/gold/exact", "eval/gold/facts"]
    return [dict(zip(keys, values, strict=True)) for values in RECORDED[name]]


def first_alarm(alarm, rows):
    """Return the iteration of the first alarm; None: there is none."""
    ends = range(1, len(rows) + 1)
    return next((rows[n - 1]["iteration"] for n in ends if alarm.falling(rows[:n])), None)


def synthetic(golds, proxies):
    return [
        {"iteration": 10 * i, "eval/proxy/p": proxy, "eval/gold/exact": gold}
        for i, (gold, proxy) in enumerate(zip(golds, proxies, strict=True))
    ]


def test_it_fires_soon_after_vanilla_turns_and_late_in_guard():
    """Vanilla's gold turns at about iteration 100, Guard's after 200."""
    assert 100 < first_alarm(DEFAULT, rows_of("vanilla")) <= 140
    assert 200 < first_alarm(DEFAULT, rows_of("guard")) <= 240


@pytest.mark.parametrize("window", [14, 15, 16])
@pytest.mark.parametrize("confidence", [0.998, 0.999, 0.9995])
def test_it_does_not_hang_on_the_exact_settings(window, confidence):
    alarm = dataclasses.replace(DEFAULT, window=window, confidence=confidence)
    assert 100 < first_alarm(alarm, rows_of("vanilla")) <= 150
    assert 200 < first_alarm(alarm, rows_of("guard")) <= 240


@pytest.mark.parametrize(("gain", "most"), [(0.1, 0.0), (0.0, 0.04)])
def test_runs_that_learn_raise_none_and_runs_without_a_trend_few(gain, most):
    """The scatter is that of a share of about .4 on 192 prompts, .035."""
    rng = np.random.default_rng(0)
    along = np.arange(41) / 41
    alarms = []
    for _ in range(100):
        golds = 0.4 + gain * along + rng.normal(0, 0.035, 41)
        alarms.append(first_alarm(DEFAULT, synthetic(golds, 12 + along + rng.normal(0, 0.1, 41))))
    assert np.mean([alarm is not None for alarm in alarms]) <= most


def test_a_gold_that_falls_with_its_proxy_raises_none():
    """Both fall where training breaks down; that is no over-optimisation."""
    falling = np.linspace(1, 0, 20) + np.random.default_rng(0).normal(0, 0.01, 20)
    assert first_alarm(DEFAULT, synthetic(falling, falling)) is None
    assert first_alarm(DEFAULT, synthetic(falling, -falling)) == 140


def test_several_golds_share_the_level():
    """Beside another gold, a gold must fall at half the level."""
    alone = Alarm(golds=["exact"], window=15, confidence=0.5)
    rng = np.random.default_rng(3)
    rows = synthetic(rng.normal(-0.1 * np.arange(15), 1), np.arange(15))
    both = dataclasses.replace(alone, golds=["exact", "facts"])
    levels = np.linspace(0.01, 0.99, 99).tolist()

    def highest(alarm):
        raised = [c for c in levels if dataclasses.replace(alarm, confidence=c).falling(rows)]
        return max(raised)

    assert 1 - highest(both) == pytest.approx(2 * (1 - highest(alone)), abs=0.02)


def test_every_part_of_a_proxy_counts_in_its_own_scatter():
    rows = synthetic(np.linspace(1, 0, 15), np.arange(15))
    large = [row | {"eval/proxy/large": 1000 - 10 * i} for i, row in enumerate(rows)]
    still = [row | {"eval/proxy/still": 3.0} for row in rows]
    assert not DEFAULT.falling(large)
    assert DEFAULT.falling(still)


def test_the_log_has_one_line_and_the_metric_every_evaluation(caplog):
    caplog.set_level(logging.WARNING)
    watch = Watch(DEFAULT)
    raised = []
    for row in rows_of("vanilla"):
        metrics = {key: scalar(value) for key, value in row.items() if key != "iteration"}
        assert watch.observe(row["iteration"], {}) == {}
        raised.append(watch.observe(row["iteration"], metrics)[KEY].value)
    assert raised[:14] == [0] * 14
    assert raised[14] == 1
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "over-optimising: eval/gold/exact falls from 0.375 at iteration 0 to 0.312 at 140,"
        " while the proxy rises (99.9 % confidence)"
    )


def test_a_resumed_run_goes_on_where_it_was(caplog):
    rows = rows_of("vanilla")
    last = {key: scalar(value) for key, value in rows[14].items() if key != "iteration"}
    assert Watch(DEFAULT, rows[:14]).observe(140, last)[KEY].value == 1
    assert len(caplog.records) == 1
    Watch(DEFAULT, [*rows[:14], {**rows[14], KEY: 1.0}]).observe(150, last)
    Watch(DEFAULT, rows[:14], reports=False).observe(140, last)
    assert len(caplog.records) == 1


def test_a_gold_that_is_infinite_once_is_followed_like_that_of_a_resumed_run():
    """metrics.jsonl has no infinite numbers, so a resumed run does not know of it."""
    rows = rows_of("vanilla")
    infinite = {"eval/gold/exact": scalar(-math.inf), "eval/proxy/pickscore": scalar(0.0)}
    last = {key: scalar(value) for key, value in rows[14].items() if key != "iteration"}
    watch = Watch(DEFAULT, rows[:14])
    watch.observe(135, infinite)
    assert watch.observe(140, last)[KEY].value == 1


def test_a_gold_that_is_not_measured_is_reported_once(caplog):
    watch = Watch(dataclasses.replace(DEFAULT, golds=["exat"]))
    metrics = {"eval/gold/exact": scalar(0.5), "eval/gold/none": Mean(sum=0, count=0)}
    watch.observe(0, metrics)
    watch.observe(10, metrics)
    (record,) = caplog.records
    assert record.getMessage() == (
        "eval.alarm.golds has exat, but the evaluations measure exact; they are not watched"
    )


def over_optimising(folder, **changes):
    """An experiment whose alarm is raised at its fourth evaluation, before iteration 3."""
    alarm = Alarm(golds=["grey"], window=4, confidence=0.01)
    checkpoint = dataclasses.replace(experiment().checkpoint, best="eval/gold/grey")
    settings = {"every": 1, "alarm": alarm, "stop_on_over_optimisation": True} | changes
    evaluation = dataclasses.replace(experiment().eval, **settings)
    return experiment(folder, iterations=5, checkpoint=checkpoint, eval=evaluation)


def read(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_ends_at_the_alarm_with_its_best_checkpoint(tmp_path, monkeypatch):
    """The same command evaluates once more and ends at the same place."""
    monkeypatch.setattr(Alarm, "falling", lambda self, rows: ("grey",) if len(rows) > 3 else ())
    for _ in range(2):
        train(over_optimising(tmp_path), {})
        rows = read(tmp_path)
        assert [row["iteration"] for row in rows] == [0, 1, 2, 3]
        assert [row[KEY] for row in rows] == [0, 0, 0, 1]
        assert "reward/total" not in rows[-1]
        names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
        assert {"best", "000003"} <= names
        assert list_states(tmp_path / "state")[0].name == "000003"
        card = (tmp_path / "checkpoints/000003/README.md").read_text(encoding="utf-8")
        assert KEY in card


def test_without_the_setting_a_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(Alarm, "falling", lambda self, rows: ("grey",) if len(rows) > 3 else ())
    train(over_optimising(tmp_path, stop_on_over_optimisation=False), {})
    assert [row["iteration"] for row in read(tmp_path)] == [0, 1, 2, 3, 4, 5]


def test_a_run_that_may_end_early_must_keep_its_best():
    settings = vars(over_optimising(Path("unwritten")))
    unkept = dataclasses.replace(settings["checkpoint"], best=None)
    with pytest.raises(
        ConfigError, match=r"needs a best checkpoint to keep; give checkpoint\.best"
    ):
        Experiment(**settings | {"checkpoint": unkept})


def test_a_run_that_may_end_early_must_watch_a_gold():
    with pytest.raises(ConfigError, match=r"no gold is watched; give eval\.alarm\.golds"):
        over_optimising(Path("unwritten"), alarm=Alarm(golds=[], window=4, confidence=0.9))


@pytest.mark.parametrize(("every", "warns"), [(1, False), (2, True)])
def test_a_run_that_is_too_short_to_end_early_says_so(every, warns, caplog):
    """It evaluates before five iterations, or before three of them, and needs four evaluations."""
    prepare(over_optimising(Path("unwritten"), every=every))
    lines = [record.getMessage() for record in caplog.records]
    wanted = (
        "eval.stop_on_over_optimisation=true cannot end this run: it evaluates 3 times before its"
        " end, fewer than eval.alarm.window=4; lower eval.every or the window"
    )
    assert lines == [wanted] * warns
