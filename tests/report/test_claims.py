"""Verdicts on constructed numbers that support a claim, contradict it, or cannot decide it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import (
    CENTRED,
    FALLING,
    GROWING,
    LEVEL,
    MILD,
    RISING,
    SHIFTED,
    VARIANTS,
    WINDOWS,
    Numbers,
    keep_windows,
    make_run,
)

from grpo_guard.report import arms
from grpo_guard.report.claims import Claim, judge_claims
from grpo_guard.report.runs import Run, read_runs


def judge(words: str, *runs: Run) -> Claim:
    """Judge the claim whose title contains these words."""
    return next(claim for claim in judge_claims(runs) if words in claim.rule.title)


@pytest.mark.parametrize(
    ("words", "run", "verdict"),
    [
        ("mean lies below 1", make_run(), "shows"),
        ("mean lies below 1", make_run(raw=(CENTRED, GROWING)), "does not show"),
        ("mean lies below 1", make_run(raw=((-3e-4,) * 4, (1e-4,) * 4)), "does not show"),
        ("mean lies below 1", make_run(updates=1, raw=((0,) * 4, (0,) * 4)), "not measured"),
        ("spread grows", make_run(), "shows"),
        ("spread grows", make_run(raw=(SHIFTED, (1e-4,) * 4)), "does not show"),
        ("mean back to 1", make_run("guard"), "shows"),
        ("mean back to 1", make_run("guard", norm=(SHIFTED, MILD)), "does not show"),
        ("spread more alike", make_run("guard"), "shows"),
        ("spread more alike", make_run("guard", norm=(CENTRED, GROWING)), "does not show"),
        ("upper clip lies idle", make_run(), "shows"),
        ("upper clip lies idle", make_run(high=(0, 0, 0.01, 0.2)), "does not show"),
        ("upper clip lies idle", make_run(high=(0,) * 4, low=(0,) * 4), "does not show"),
        ("upper clip lies idle", make_run("guard"), "not measured"),
        (
            "both sides",
            make_run("guard", high=(0.1, 0.2, 0.2, 0.3), low=(0.1, 0.19, 0.21, 0.3)),
            "shows",
        ),
        ("both sides", make_run("guard"), "does not show"),
        ("both sides", make_run("guard", high=(0,) * 4, low=(0,) * 4), "does not show"),
        ("both sides", make_run(), "not measured"),
        ("over-optimises", make_run(), "shows"),
        ("over-optimises", make_run(golds={"facts": LEVEL}), "does not show"),
        ("over-optimises", make_run(proxy=LEVEL), "does not show"),
        (
            "over-optimises",
            make_run(proxy=RISING[:3], golds={"facts": FALLING[:3]}),
            "not measured",
        ),
    ],
)
def test_verdicts_on_one_run(words: str, run: Run, verdict: str) -> None:
    assert judge(words, run).verdict == verdict


def test_claims_about_the_raw_ratio_are_judged_on_the_runs_that_optimise_it() -> None:
    contrary = make_run("guard", raw=(CENTRED, GROWING))
    assert judge("mean lies below 1", make_run(), contrary).verdict == "shows"
    assert judge("mean lies below 1", contrary).verdict == "does not show"


def test_one_contrary_run_is_enough_against_a_claim() -> None:
    contrary = make_run(raw=(CENTRED, GROWING), seed=1)
    assert judge("mean lies below 1", make_run(), contrary).verdict == "does not show"


def test_one_run_is_enough_to_show_over_optimisation() -> None:
    level = make_run(golds={"facts": LEVEL}, seed=1)
    assert judge("over-optimises", make_run(), level).verdict == "shows"


def test_the_gradient_is_even_if_its_spread_halves() -> None:
    even = make_run("guard", share=(0.2, 0.3, 0.3, 0.2))
    uneven = make_run("guard", share=(0.03, 0.07, 0.3, 0.6))
    assert judge("evens the gradient", make_run(), even).verdict == "shows"
    assert judge("evens the gradient", make_run(), uneven).verdict == "does not show"
    assert judge("evens the gradient", even).verdict == "not measured"


VANILLA_GOLDS = {"facts": FALLING, "clean": tuple(np.linspace(0.9, 0.8, 8))}
BETTER_FACTS = tuple(np.linspace(0.8, 0.75, 8))
WORSE_CLEAN = tuple(np.linspace(0.9, 0.6, 8) + [0, 0.01] * 4)


@pytest.mark.parametrize(
    ("golds", "verdict"),
    [
        (VANILLA_GOLDS | {"facts": BETTER_FACTS}, "shows"),
        (VANILLA_GOLDS, "does not show"),
        ({"facts": BETTER_FACTS, "clean": WORSE_CLEAN}, "does not show"),
    ],
)
def test_gold_at_the_same_proxy(golds: dict[str, Numbers], verdict: str) -> None:
    vanilla, guard = make_run(golds=VANILLA_GOLDS), make_run("guard", golds=golds)
    assert judge("same proxy", vanilla, guard).verdict == verdict


def test_gold_is_not_compared_if_proxies_do_not_overlap_or_differ() -> None:
    beyond = make_run("guard", proxy=tuple(np.linspace(0.6, 0.7, 8)))
    assert judge("same proxy", make_run(), beyond).verdict == "not measured"
    vanilla = make_run(reward={"_target_": "x.PickScore"})
    other = make_run("guard", reward={"_target_": "x.Ocr"})
    assert judge("same proxy", vanilla, other).verdict == "not measured"
    assert judge("same proxy", make_run()).verdict == "not measured"


def test_gold_is_interpolated_in_the_proxy() -> None:
    slower = make_run("guard", proxy=tuple(np.linspace(0.4, 0.45, 8)))
    gold = arms.matched_gold([make_run(), slower], "facts")
    assert gold is not None
    assert gold.vanilla.value == pytest.approx(0.725, abs=1e-3)
    assert gold.guard.value == pytest.approx(0.65, abs=1e-3)
    assert gold.difference.value == pytest.approx(-0.075, abs=1e-3)


def test_the_error_between_seeds_counts_if_it_is_larger() -> None:
    golds = [{"facts": tuple(np.linspace(0.8, 0.75, 8) - 0.2 * seed)} for seed in (0, 1)]
    guard = [make_run("guard", golds=gold, seed=seed) for seed, gold in enumerate(golds)]
    gold = arms.matched_gold([make_run(), make_run(seed=1), *guard], "facts")
    assert gold is not None
    assert gold.guard.error == pytest.approx(0.1)


def test_cautions_name_single_seeds_unequal_clipping_and_other_settings() -> None:
    vanilla = make_run(optim={"lr": 3e-4})
    guard = make_run("guard", high=(0.3,) * 4, low=(0.3,) * 4, optim={"lr": 1e-4})
    text = " ".join(judge("same proxy", vanilla, guard).cautions)
    for words in ("only one seed per arm", "unequal shares", "also differ in optim.lr."):
        assert words in text
    seeds = [make_run(variant, seed=seed) for variant in VARIANTS for seed in (0, 1)]
    assert "only 2 seeds per arm" in " ".join(judge("same proxy", *seeds).cautions)


def test_a_caution_names_a_variant_that_was_changed_in_some_runs_of_an_arm() -> None:
    guard = make_run("guard", seed=1)
    clipping = dict(guard.config["clipping"]) | {"weight": {"_target_": "x.uniform"}}
    changed = replace(guard, config=dict(guard.config) | {"clipping": clipping})
    text = " ".join(judge("same proxy", make_run(), make_run("guard"), changed).cautions)
    assert "The runs also differ in clipping.weight._target_." in text


def test_synthetic_runs_show_what_they_were_made_to_show(pair: tuple[Path, Path]) -> None:
    claims = judge_claims(read_runs(pair))
    verdicts = [c.verdict for c in claims if "upper clip lies idle" not in c.rule.title]
    assert verdicts[:6] == ["shows"] * 6


def test_a_finding_says_how_many_iterations_trained_a_step() -> None:
    partly = judge("mean lies below 1", keep_windows(make_run(), *WINDOWS))
    always = judge("mean lies below 1", make_run())
    once = judge("mean lies below 1", replace(make_run(), rows=make_run().rows[:1]))
    assert "96 rows a step in each of 2 to 6 iterations" in partly.findings[0].text
    assert "96 rows a step in each of 8 iterations" in always.findings[0].text
    assert "96 rows a step in one iteration" in once.findings[0].text


def test_gradients_are_compared_only_if_all_iterations_trained_the_same_steps() -> None:
    even = make_run("guard", share=(0.2, 0.3, 0.3, 0.2))
    for vanilla, guard in (
        (keep_windows(make_run(), *WINDOWS), keep_windows(even, *WINDOWS)),
        (make_run(), keep_windows(even, *WINDOWS)),
        (make_run(), keep_windows(even, range(1, 4))),
    ):
        claim = judge("evens the gradient", vanilla, guard)
        assert claim.verdict == "not measured"
        assert "not all their iterations trained the same steps" in claim.findings[0].text
    runs = [keep_windows(run, range(3)) for run in (make_run(), even)]
    assert judge("evens the gradient", *runs).verdict == "shows"


def test_claims_about_several_steps_need_more_than_one() -> None:
    runs = [keep_windows(run, range(3, 4)) for run in (make_run(), make_run("guard"))]
    for words in ("mean lies below 1", "spread grows", "spread more alike", "evens the gradient"):
        assert judge(words, *runs).verdict == "not measured"
    assert "only one trained step" in judge("spread grows", *runs).findings[0].text
