"""Proxy and golds along a run: what they are, their errors, and their trends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from synthetic_runs import LEVEL, RISING, make_run

from grpo_guard.report import curves


def test_the_proxy_is_the_reward_that_equals_the_total() -> None:
    run = make_run()
    for row in run.rows:
        row.update({"eval/proxy/a": 0.1, "reward/a": 0.1})  # type: ignore[attr-defined]
    assert curves.proxy_name(run) == "p"


def test_the_proxy_of_a_mixture_is_its_weighted_sum() -> None:
    run = make_run(reward={"_target_": "x.Mixture", "weights": {"p": 0.5, "q": 2}})
    for row in run.rows:
        row.update({"eval/proxy/q": 0.1})  # type: ignore[attr-defined]
    assert curves.proxy_name(run) == "p + q"
    assert curves.proxy_curve(run).value == pytest.approx(np.array(RISING) / 2 + 0.2)


def test_statistics_are_not_golds() -> None:
    run = make_run(golds={"edge_density": LEVEL, "zeta": LEVEL, "clean": LEVEL, "exact": LEVEL})
    assert curves.gold_names([run]) == ("exact", "clean", "zeta")
    assert curves.statistic_names([run]) == ("edge_density",)
    run = replace(run, rows=tuple(row | {"watch/diversity": 0.1} for row in run.rows))
    assert curves.statistic_names([run]) == ("diversity", "edge_density")


def test_smoothing_averages_over_a_sixth_of_the_run() -> None:
    iteration, value = curves.smooth(np.arange(12), np.array([0.0, 2, 0, 2] * 3))
    assert iteration == pytest.approx(np.arange(11) + 0.5)
    assert value == pytest.approx(np.ones(11))
    assert [len(x) for x in curves.smooth(np.arange(0), np.empty(0))] == [0, 0]
    assert curves.smooth(np.arange(3), np.array([1.0, 2, 3]))[1] == pytest.approx([1, 2, 3])


def test_the_error_of_exact_is_binomial() -> None:
    gold = curves.gold_curve(make_run(golds={"exact": (0.25,) * 8}), "exact")
    assert gold.error == pytest.approx(np.sqrt(0.25 * 0.75 / 192))


def test_scatter_is_the_noise_about_a_smooth_curve() -> None:
    noise = np.random.default_rng(0).normal(size=4000)
    assert curves.scatter(noise + np.arange(4000)) == pytest.approx(1, rel=0.05)
    assert np.isnan(curves.scatter(noise[:4]))
