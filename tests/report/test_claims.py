"""Verdicts on constructed numbers, both ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grpo_guard.report import arms, measure
from grpo_guard.report.claims import Claim, claims
from grpo_guard.report.notation import number, percent
from grpo_guard.report.runs import Run, gather

SETTINGS = {
    "vanilla": ("raw", "uniform"),
    "guard": ("norm", "inverse_dt"),
    "rationorm": ("norm", "uniform"),
}
STEPS = 4
SHIFTED, GROWING = (-1e-7, -1e-6, -2e-5, -3e-4), (1e-5, 5e-5, 2e-4, 8e-4)
CENTRED, MILD = (1e-8, -2e-8, 1e-8, -3e-8), (5e-5, 7e-5, 1e-4, 2e-4)
FALLING, LEVEL = tuple(np.linspace(0.8, 0.5, 8)), (0.8, 0.81, 0.79, 0.8, 0.81, 0.79, 0.8, 0.8)
RISING = tuple(np.linspace(0.4, 0.5, 8))

Numbers = Sequence[float]


def made(
    objective: str = "vanilla",
    *,
    raw: tuple[Numbers, Numbers] = (SHIFTED, GROWING),
    norm: tuple[Numbers, Numbers] = (CENTRED, MILD),
    high: Numbers = (0, 0, 0, 0.001),
    low: Numbers = (0, 0, 0.01, 0.3),
    share: Numbers = (0.02, 0.08, 0.3, 0.6),
    proxy: Numbers = RISING,
    golds: dict[str, Numbers] | None = None,
    label: str = "",
    **config: Any,
) -> Run:
    """A run of eight iterations with the same ratios at each."""
    ratio, weight = SETTINGS[objective]
    tables = {
        "ratio_raw/mean": raw[0],
        "ratio_raw/std": raw[1],
        "ratio_norm/mean": norm[0],
        "ratio_norm/std": norm[1],
        "clip/high_pos_adv": high,
        "clip/low_neg_adv": low,
        "grad_share": share,
    }
    steps = {
        f"{key}/{tt:02d}": float(v) for key, values in tables.items() for tt, v in enumerate(values)
    }
    curves = {"eval/proxy/p": proxy} | {
        f"eval/gold/{k}": v for k, v in (golds or {"facts": FALLING}).items()
    }
    rows = [
        {"iteration": float(i), "images": 96.0 * (i + 1), "reward/total": 0.5, "reward/p": 0.5}
        | steps
        | {key: float(values[i]) for key, values in curves.items() if i < len(values)}
        for i in range(8)
    ]
    clip = {
        "_target_": "grpo_guard.clipping.clip.Clip",
        "ratio": {"_target_": f"x.log_ratio_{ratio}"},
        "weight": {"_target_": f"x.{weight}"},
    }
    settings = {
        "clipping": clip,
        "data": {"prompts": 12, "repeats": 16},
        "updates": 2,
        "steps_per_sample": None,
    }
    return Run(
        folder=Path("made"),
        label=label or objective,
        config=settings
        | {"eval": {"prompts": 192}, "seed": 0, "iterations": 8, "steps": 5}
        | config,
        rows=tuple(rows),
        torn=0,
        histograms=None,
        samples=None,
    )


def claim(words: str, *runs: Run) -> Claim:
    return next(found for found in claims(runs) if words in found.rule.title)


def test_rows_per_step_are_those_after_the_first_update() -> None:
    assert measure.rows_per_step(made(), 4) == 96
    assert measure.rows_per_step(made(steps_per_sample=1), 4) == 24
    assert measure.rows_per_step(made(updates=4), 4) == 144
    assert measure.rows_per_step(made(updates=1), 4) == 192


def test_the_error_of_a_ratio_mean_counts_rows_and_iterations() -> None:
    found = measure.ratio(made(), "raw")
    assert found is not None
    assert found.error == pytest.approx(np.array(GROWING) / np.sqrt(96 * 8))


def test_the_error_of_a_ratio_mean_sees_iterations_that_disagree() -> None:
    run = made()
    for i, row in enumerate(run.rows):
        row["ratio_raw/mean/03"] = 1e-3 * (-1) ** i  # type: ignore[index]
    found = measure.ratio(run, "raw")
    assert found is not None
    assert found.error[3] == pytest.approx(1e-3 * np.sqrt(8 / 7) / np.sqrt(8))


@pytest.mark.parametrize(
    ("words", "run", "verdict"),
    [
        ("mean lies below 1", made(), "shows"),
        ("mean lies below 1", made(raw=(CENTRED, GROWING)), "does not show"),
        ("mean lies below 1", made(raw=((-3e-4,) * 4, (1e-4,) * 4)), "does not show"),
        ("mean lies below 1", made(updates=1, raw=((0,) * 4, (0,) * 4)), "not measured"),
        ("spread grows", made(), "shows"),
        ("spread grows", made(raw=(SHIFTED, (1e-4,) * 4)), "does not show"),
        ("mean back to 1", made("guard"), "shows"),
        ("mean back to 1", made("guard", norm=(SHIFTED, MILD)), "does not show"),
        ("spread more alike", made("guard"), "shows"),
        ("spread more alike", made("guard", norm=(CENTRED, GROWING)), "does not show"),
        ("upper clip lies idle", made(), "shows"),
        ("upper clip lies idle", made(high=(0, 0, 0.01, 0.2)), "does not show"),
        ("upper clip lies idle", made(high=(0,) * 4, low=(0,) * 4), "does not show"),
        ("upper clip lies idle", made("guard"), "not measured"),
        (
            "both sides",
            made("guard", high=(0.1, 0.2, 0.2, 0.3), low=(0.1, 0.19, 0.21, 0.3)),
            "shows",
        ),
        ("both sides", made("guard"), "does not show"),
        ("both sides", made("guard", high=(0,) * 4, low=(0,) * 4), "does not show"),
        ("both sides", made(), "not measured"),
        ("over-optimises", made(), "shows"),
        ("over-optimises", made(golds={"facts": LEVEL}), "does not show"),
        ("over-optimises", made(proxy=LEVEL), "does not show"),
        ("over-optimises", made(proxy=RISING[:3], golds={"facts": FALLING[:3]}), "not measured"),
    ],
)
def test_verdicts_on_one_run(words: str, run: Run, verdict: str) -> None:
    assert claim(words, run).verdict == verdict


def test_claims_about_the_raw_ratio_are_judged_on_the_runs_that_optimise_it() -> None:
    odd = made("guard", raw=(CENTRED, GROWING))
    assert claim("mean lies below 1", made(), odd).verdict == "shows"
    assert claim("mean lies below 1", odd).verdict == "does not show"


def test_one_contrary_run_is_enough_against_a_claim() -> None:
    assert (
        claim("mean lies below 1", made(), made(raw=(CENTRED, GROWING), seed=1)).verdict
        == "does not show"
    )


def test_one_run_is_enough_to_show_over_optimisation() -> None:
    assert claim("over-optimises", made(), made(golds={"facts": LEVEL}, seed=1)).verdict == "shows"


def test_a_gradient_is_evened_where_its_spread_halves() -> None:
    even, uneven = (
        made("guard", share=(0.2, 0.3, 0.3, 0.2)),
        made("guard", share=(0.03, 0.07, 0.3, 0.6)),
    )
    assert claim("evens the gradient", made(), even).verdict == "shows"
    assert claim("evens the gradient", made(), uneven).verdict == "does not show"
    assert claim("evens the gradient", even).verdict == "not measured"


STRAIGHT = {"facts": tuple(np.linspace(0.8, 0.5, 8)), "clean": tuple(np.linspace(0.9, 0.8, 8))}


@pytest.mark.parametrize(
    ("golds", "verdict"),
    [
        (
            {"facts": tuple(np.linspace(0.8, 0.75, 8)), "clean": tuple(np.linspace(0.9, 0.8, 8))},
            "shows",
        ),
        (STRAIGHT, "does not show"),
        (
            {
                "facts": tuple(np.linspace(0.8, 0.75, 8)),
                "clean": tuple(np.linspace(0.9, 0.6, 8) + [0, 0.01] * 4),
            },
            "does not show",
        ),
    ],
)
def test_gold_at_the_same_proxy(golds: dict[str, Numbers], verdict: str) -> None:
    assert claim("same proxy", made(golds=STRAIGHT), made("guard", golds=golds)).verdict == verdict


def test_gold_is_not_compared_where_proxies_do_not_meet_or_differ() -> None:
    beyond = made("guard", proxy=tuple(np.linspace(0.6, 0.7, 8)))
    assert claim("same proxy", made(), beyond).verdict == "not measured"
    other = made("guard", reward={"_target_": "x.Ocr"})
    assert (
        claim("same proxy", made(reward={"_target_": "x.PickScore"}), other).verdict
        == "not measured"
    )
    assert claim("same proxy", made()).verdict == "not measured"


def test_gold_is_interpolated_in_the_proxy() -> None:
    found = arms.matched([made(), made("guard", proxy=tuple(np.linspace(0.4, 0.45, 8)))], "facts")
    assert found is not None
    vanilla, guard, difference = found
    assert vanilla.value == pytest.approx(0.725, abs=1e-3)
    assert guard.value == pytest.approx(0.65, abs=1e-3)
    assert difference.value == pytest.approx(-0.075, abs=1e-3)


def test_the_error_between_seeds_counts_where_it_is_larger() -> None:
    golds = [{"facts": tuple(np.linspace(0.8, 0.75, 8) - 0.2 * seed)} for seed in (0, 1)]
    apart = [made("guard", golds=gold, seed=seed) for seed, gold in enumerate(golds)]
    found = arms.matched([made(), made(seed=1), *apart], "facts")
    assert found is not None
    assert found[1].error == pytest.approx(0.1)


def test_cautions_name_single_seeds_unequal_clipping_and_other_settings() -> None:
    much = made("guard", high=(0.3,) * 4, low=(0.3,) * 4, optim={"lr": 1e-4})
    text = " ".join(claim("same proxy", made(optim={"lr": 3e-4}), much).cautions)
    for words in ("One seed a side", "unequal shares", "optim.lr"):
        assert words in text
    assert "seeds a side" in " ".join(
        claim("same proxy", *(made(k, seed=s) for k in SETTINGS for s in (0, 1))).cautions
    )


def test_the_proxy_is_the_reward_that_is_the_total() -> None:
    run = made()
    for row in run.rows:
        row.update({"eval/proxy/a": 0.1, "reward/a": 0.1})  # type: ignore[attr-defined]
    assert measure.proxy_name(run) == "p"


def test_the_proxy_of_a_mixture_is_its_weighted_sum() -> None:
    run = made(reward={"_target_": "x.Mixture", "weights": {"p": 0.5, "q": 2}})
    for row in run.rows:
        row.update({"eval/proxy/q": 0.1})  # type: ignore[attr-defined]
    assert measure.proxy_name(run) == "p + q"
    assert measure.proxy(run).value == pytest.approx(np.array(RISING) / 2 + 0.2)


def test_statistics_are_no_golds() -> None:
    run = made(golds={"edge_density": LEVEL, "zeta": LEVEL, "clean": LEVEL, "exact": LEVEL})
    assert measure.gold_names([run]) == ("exact", "clean", "zeta")
    assert measure.statistic_names([run]) == ("edge_density",)
    for row in run.rows:
        row.update({"watch/diversity": 0.1, "watch/edge_density": 0.1})  # type: ignore[attr-defined]
    assert measure.statistic_names([run]) == ("diversity", "edge_density")


def test_smoothing_is_the_mean_of_a_sixth() -> None:
    iteration, value = measure.smooth(np.arange(12), np.array([0.0, 2, 0, 2] * 3))
    assert iteration == pytest.approx(np.arange(11) + 0.5)
    assert value == pytest.approx(np.ones(11))
    assert [len(x) for x in measure.smooth(np.arange(0), np.empty(0))] == [0, 0]
    assert measure.smooth(np.arange(3), np.array([1.0, 2, 3]))[1] == pytest.approx([1, 2, 3])


def test_the_error_of_exact_is_binomial() -> None:
    curve = measure.gold(made(golds={"exact": (0.25,) * 8}), "exact")
    assert curve.error == pytest.approx(np.sqrt(0.25 * 0.75 / 192))


def test_scatter_is_the_noise_about_a_smooth_curve() -> None:
    noise = np.random.default_rng(0).normal(size=4000)
    assert measure.scatter(noise + np.arange(4000)) == pytest.approx(1, rel=0.05)
    assert np.isnan(measure.scatter(noise[:4]))


def test_a_trend_has_the_error_of_a_regression() -> None:
    x, y = np.arange(9) * 10, np.random.default_rng(1).normal(size=9)
    found = measure.trend(measure.Curve(iteration=x, value=y, error=y))
    (slope, _), covariance = np.polyfit(x, y, 1, cov=True)
    assert found is not None
    assert found.value == pytest.approx(slope * 80)
    assert found.error == pytest.approx(np.sqrt(covariance[0, 0]) * 80)


def test_numbers_are_short() -> None:
    assert [number(x) for x in (0.0, 0.123456, -3.456e-7, 53.04, float("nan"))] == [
        "0",
        "0.123",
        "-3.5e-7",
        "53",
        "-",
    ]
    assert [percent(x) for x in (0.0, 0.0001, 0.0123, float("nan"))] == [
        "0 %",
        "under 0.1 %",
        "1.23 %",
        "-",
    ]


def test_synthetic_runs_say_what_they_were_made_to_say(pair: tuple[Path, Path]) -> None:
    verdicts = {found.rule.title: found.verdict for found in claims(gather(pair))}
    assert [verdict for title, verdict in verdicts.items() if "upper clip lies idle" not in title][
        :6
    ] == ["shows"] * 6


def windowed(run: Run, *windows: range) -> Run:
    """The same run, had its iterations trained the steps of these windows in turn."""

    def kept(key: str, window: range) -> bool:
        return not key[-2:].isdigit() or int(key[-2:]) in window

    rows = [
        {key: value for key, value in row.items() if kept(key, windows[i % len(windows)])}
        for i, row in enumerate(run.rows)
    ]
    return replace(run, rows=tuple(rows))


WINDOWS = range(2), range(1, 3), range(2, 4), range(2, 4)
"""Of eight iterations, how many train each step: 2, 4, 6, 4."""


def test_a_moving_window_counts_the_rows_and_iterations_that_saw_a_step() -> None:
    run = windowed(made(steps_per_sample=1), *WINDOWS)
    found = measure.ratio(run, "raw")
    assert found is not None
    assert found.iterations.tolist() == [2, 4, 6, 4]
    assert found.rows == 48
    assert found.mean == pytest.approx(np.array(SHIFTED))
    assert found.error == pytest.approx(np.array(GROWING) / np.sqrt(48 * found.iterations))


def test_a_moving_window_knows_the_scatter_of_the_iterations_that_saw_a_step() -> None:
    run = windowed(made(), *WINDOWS)
    for i, row in enumerate(run.rows):
        row |= {"ratio_raw/mean/03": 1e-2 * (-1) ** i} if "ratio_raw/mean/03" in row else {}  # type: ignore[operator]
    found = measure.ratio(run, "raw")
    assert found is not None
    assert found.error[3] == pytest.approx(1e-2 * np.sqrt(4 / 3) / np.sqrt(4))


def test_a_finding_says_how_many_iterations_saw_a_step() -> None:
    partly, always = (
        claim("mean lies below 1", windowed(made(), *WINDOWS)),
        claim("mean lies below 1", made()),
    )
    assert "96 rows a step in each of 2 to 6 iterations" in partly.findings[0].text
    assert "96 rows a step in each of 8 iterations" in always.findings[0].text
    once = claim("mean lies below 1", replace(made(), rows=made().rows[:1]))
    assert "96 rows a step in one iteration" in once.findings[0].text


def test_shares_of_the_gradient_are_compared_only_among_steps_that_are_always_trained_together() -> (
    None
):
    even = made("guard", share=(0.2, 0.3, 0.3, 0.2))
    assert measure.gradient_spread(made()) == pytest.approx(30)
    assert np.isnan(measure.gradient_spread(windowed(made(), *WINDOWS)))
    for vanilla, guard in (
        (windowed(made(), *WINDOWS), windowed(even, *WINDOWS)),
        (made(), windowed(even, *WINDOWS)),
        (made(), windowed(even, range(1, 4))),
    ):
        found = claim("evens the gradient", vanilla, guard)
        assert found.verdict == "not measured"
        assert "not all their iterations trained the same steps" in found.findings[0].text
    assert (
        claim("evens the gradient", *(windowed(run, range(3)) for run in (made(), even))).verdict
        == "shows"
    )


def test_one_trained_step_tells_nothing_of_others() -> None:
    runs = [windowed(run, range(3, 4)) for run in (made(), made("guard"))]
    for words in ("mean lies below 1", "spread grows", "spread more alike", "evens the gradient"):
        assert claim(words, *runs).verdict == "not measured"
    assert "only one trained step" in claim("spread grows", *runs).findings[0].text


def test_the_sides_of_the_clip_are_those_of_one_step() -> None:
    run = made(high=(0.1, 0.2, 0.3, 0.4), low=(0.5, 0.6, 0.7, 0.8))
    for row in run.rows:
        del row["clip/high_pos_adv/00"], row["clip/low_neg_adv/02"]  # type: ignore[attr-defined]
    found = measure.clip(run)
    assert found is not None
    assert (found.step.tolist(), found.high.tolist()) == ([1, 3], pytest.approx([0.2, 0.4]))
    assert found.low == pytest.approx(np.array([0.6, 0.8]))
