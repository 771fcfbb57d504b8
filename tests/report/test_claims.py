"""Verdicts on constructed numbers that support a claim, contradict it, or cannot decide it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

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
    WINDOWS,
    Numbers,
    keep_windows,
    make_run,
)

from grpo_guard.report import analyse_runs, read_runs
from grpo_guard.report.claims import RULES, Claim
from grpo_guard.report.evidence import Evidence
from grpo_guard.report.findings import Finding
from grpo_guard.report.runs import Run


def judge(words: str, *runs: Run) -> Claim:
    """Judge the claim whose title contains these words, on runs of one set."""
    [result] = analyse_runs(runs)
    return next(claim for claim in result.claims if words in claim.rule.title)


def seeds_of(variant: str = "vanilla", count: int = 3, **numbers: Any) -> list[Run]:
    """Make equal runs of several seeds."""
    return [make_run(variant, seed=seed, **numbers) for seed in range(count)]


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


@pytest.mark.parametrize(
    ("numbers", "verdict"),
    [
        ({}, "shows"),
        ({"golds": {"facts": LEVEL}}, "does not show"),
        ({"golds": {"facts": LEVEL}, "eval": {"prompts": 10}}, "undecided"),
        ({"golds": {"facts": RISING}}, "does not show"),
        ({"proxy": FALLING}, "does not show"),
        ({"proxy": RISING[:1], "golds": {"facts": FALLING[:1]}}, "not measured"),
    ],
)
def test_over_optimisation_is_judged_by_arm(numbers: Any, verdict: str) -> None:
    assert judge("over-optimises", *seeds_of(**numbers)).verdict == verdict


def test_one_arm_is_enough_to_show_over_optimisation() -> None:
    level = seeds_of("guard", golds={"facts": LEVEL})
    assert judge("over-optimises", *seeds_of(), *level).verdict == "shows"


def test_two_seeds_decide_nothing() -> None:
    assert judge("over-optimises", *seeds_of(count=2)).verdict == "undecided"


@pytest.mark.parametrize(
    ("holds", "unsettled", "verdict"),
    [
        ([True], 0, "shows"),
        ([True], 3, "undecided"),
        ([False], 3, "undecided"),
        ([False] * 3, 3, "does not show"),
        ([], 2, "undecided"),
        ([], 0, "not measured"),
    ],
)
def test_findings_that_are_open_keep_a_verdict_open(
    holds: list[bool], unsettled: int, verdict: str
) -> None:
    """Only what they cannot change is decided."""
    findings = [Finding(holds=one, text="") for one in holds]
    findings += [Finding(holds=None, text="", is_undecided=True)] * unsettled
    evidence = Evidence(
        group="", unit="run", findings=tuple(findings), members=("",) * len(findings)
    )
    assert Claim(rule=RULES[0], evidence=(evidence,), cautions=()).verdict == verdict


@pytest.mark.parametrize(
    ("contrary", "verdict", "words"),
    [
        ([], "shows", "vanilla: 6 of 6 runs. For example"),
        ([3], "undecided", "vanilla: 5 of 6 runs, not seed 3. For example"),
        ([0, 3], "undecided", "vanilla: 4 of 6 runs, not seed 0, seed 3. For example"),
        ([0, 1, 2, 3], "does not show", "vanilla: 2 of 6 runs. For example"),
    ],
)
def test_findings_on_the_seeds_of_an_arm_fold(
    contrary: list[int], verdict: str, words: str
) -> None:
    runs = [
        make_run(seed=seed, raw=(CENTRED if seed in contrary else SHIFTED, GROWING))
        for seed in range(6)
    ]
    claim = judge("mean lies below 1", *runs)
    assert claim.verdict == verdict
    [evidence] = claim.evidence
    assert evidence.text.startswith(words)


def test_findings_on_pairs_fold() -> None:
    guard = seeds_of("guard", 9, share=(0.2, 0.3, 0.3, 0.2))
    [evidence] = judge("evens the gradient", *seeds_of(count=9), *guard).evidence
    assert evidence.text.startswith("vanilla and guard: 81 of 81 pairs. For example 30x (")


def test_the_gradient_is_even_if_its_spread_halves() -> None:
    even = make_run("guard", share=(0.2, 0.3, 0.3, 0.2))
    uneven = make_run("guard", share=(0.03, 0.07, 0.3, 0.6))
    assert judge("evens the gradient", make_run(), even).verdict == "shows"
    assert judge("evens the gradient", make_run(), uneven).verdict == "does not show"
    assert judge("evens the gradient", even).verdict == "not measured"


VANILLA_GOLDS = {"facts": FALLING, "clean": tuple(np.linspace(0.9, 0.8, 8))}
BETTER_FACTS = tuple(np.linspace(0.8, 0.78, 8))
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
    vanilla, guard = seeds_of(golds=VANILLA_GOLDS), seeds_of("guard", golds=golds)
    assert judge("same proxy", *vanilla, *guard).verdict == verdict


def test_gold_is_not_compared_if_proxies_do_not_overlap() -> None:
    beyond = make_run("guard", proxy=tuple(np.linspace(0.6, 0.7, 8)))
    assert judge("same proxy", make_run(), beyond).verdict == "not measured"
    assert judge("same proxy", make_run()).verdict == "not measured"


def test_gold_is_not_compared_if_rewards_differ() -> None:
    vanilla = make_run(reward={"_target_": "x.PickScore"})
    other = make_run("guard", reward={"_target_": "x.Ocr"})
    for result in analyse_runs([vanilla, other]):
        assert result.comparisons == ()


def test_cautions_stand_with_the_claim_that_they_bear_on() -> None:
    guard = make_run("guard", optim={"lr": 1e-4})
    text = " ".join(judge("same proxy", make_run(optim={"lr": 3e-4}), guard).cautions)
    assert "has only one seed" in text
    assert "optim.lr" in text


def test_synthetic_runs_show_what_they_were_made_to_show(pair: tuple[Path, Path]) -> None:
    [result] = analyse_runs(read_runs(pair))
    claims = result.claims
    verdicts = [c.verdict for c in claims if "upper clip lies idle" not in c.rule.title]
    assert verdicts[:6] == ["shows"] * 6


def test_a_finding_says_how_many_iterations_trained_a_step() -> None:
    partly = judge("mean lies below 1", keep_windows(make_run(), *WINDOWS))
    always = judge("mean lies below 1", make_run())
    once = judge("mean lies below 1", replace(make_run(), rows=make_run().rows[:1]))
    assert "96 rows a step in each of 2 to 6 iterations" in partly.evidence[0].findings[0].text
    assert "96 rows a step in each of 8 iterations" in always.evidence[0].findings[0].text
    assert "96 rows a step in one iteration" in once.evidence[0].findings[0].text


def test_gradients_are_compared_only_if_all_iterations_trained_the_same_steps() -> None:
    even = make_run("guard", share=(0.2, 0.3, 0.3, 0.2))
    for vanilla, guard in (
        (keep_windows(make_run(), *WINDOWS), keep_windows(even, *WINDOWS)),
        (make_run(), keep_windows(even, *WINDOWS)),
        (make_run(), keep_windows(even, range(1, 4))),
    ):
        claim = judge("evens the gradient", vanilla, guard)
        assert claim.verdict == "not measured"
        [evidence] = claim.evidence
        assert "not all their iterations trained the same steps" in evidence.text
    runs = [keep_windows(run, range(3)) for run in (make_run(), even)]
    assert judge("evens the gradient", *runs).verdict == "shows"


def test_claims_about_several_steps_need_more_than_one() -> None:
    runs = [keep_windows(run, range(3, 4)) for run in (make_run(), make_run("guard"))]
    for words in ("mean lies below 1", "spread grows", "spread more alike", "evens the gradient"):
        assert judge(words, *runs).verdict == "not measured"
    assert "only one trained step" in judge("spread grows", *runs).evidence[0].findings[0].text
