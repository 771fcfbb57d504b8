"""Proxy and golds along a run: what they are, their errors, and their trends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from synthetic_runs import FALLING, LEVEL, RISING, make_run

from grpo_guard.report import Run, analyse_runs, curves


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


def test_the_error_of_exact_is_binomial() -> None:
    gold = curves.gold_curve(make_run(golds={"exact": (0.25,) * 8}), "exact")
    assert gold.error == pytest.approx(np.sqrt(0.25 * 0.75 / 192))


def test_scatter_is_the_noise_about_a_smooth_curve() -> None:
    noise = np.random.default_rng(0).normal(size=4000)
    assert curves.scatter(noise + np.arange(4000)) == pytest.approx(1, rel=0.05)
    assert np.isnan(curves.scatter(noise[:4]))


def drop(run: Run, key: str, *iterations: int) -> Run:
    """Return the run without a metric at some iterations."""
    rows = [
        {k: v for k, v in row.items() if k != key or row["iteration"] not in iterations}
        for row in run.rows
    ]
    return replace(run, rows=tuple(rows))


def test_an_evaluation_without_a_part_of_the_mixture_is_left_out() -> None:
    run = make_run(reward={"_target_": "x.Mixture", "weights": {"p": 0.5, "q": 2}})
    for row in run.rows:
        row.update({"eval/proxy/q": 0.1})  # type: ignore[attr-defined]
    proxy = curves.proxy_curve(drop(run, "eval/proxy/q", 3))
    assert proxy.iteration.tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert proxy.value == pytest.approx(np.delete(RISING, 3) / 2 + 0.2)


@pytest.mark.parametrize("missing", [0, 3, 7])
def test_a_gold_that_lacks_a_value_is_left_out_with_a_line(missing: int) -> None:
    whole = make_run(golds={"facts": LEVEL, "exact": LEVEL}, seed=1)
    lacking = drop(whole, "eval/gold/exact", missing)
    runs = [whole, replace(lacking, config=dict(whole.config) | {"seed": 2}, label="second")]
    [result] = analyse_runs(runs)
    assert result.settled.golds == ("facts",)
    assert result.settled.left_out == (
        "exact is left out of means and comparisons: second has no value of it at iteration"
        f" {missing}.",
    )
    assert list(result.changes[0].golds) == ["facts"]


def test_a_curve_is_read_only_where_it_was_measured() -> None:
    gold = curves.gold_curve(drop(make_run(), "eval/gold/facts", 3), "facts")
    assert gold.at(np.array([2, 4])).value == pytest.approx([FALLING[2], FALLING[4]])
    for lacking in ([2, 3], [7, 8]):
        with pytest.raises(AssertionError):
            gold.at(np.array(lacking))
