"""Arms: what is one, what may be compared, and what to be careful about."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import make_run

from grpo_guard.report.arms import cautions, group_arms
from grpo_guard.report.per_step import step_means
from grpo_guard.report.runs import Histograms


def test_runs_that_differ_in_their_seed_alone_are_one_arm() -> None:
    runs = [make_run(v, seed=s) for s in (2, 1) for v in ("guard", "vanilla")]
    [arm_set] = group_arms(runs)
    assert [(arm.label, arm.color, arm.seeds) for arm in arm_set.arms] == [
        ("vanilla", 0, (1, 2)),
        ("guard", 1, (1, 2)),
    ]
    assert arm_set.title == ""


def test_what_changes_no_result_splits_no_arm() -> None:
    runs = [make_run(seed=s, output=f"runs/{s}", logger={"project": s}) for s in (1, 2)]
    [arm_set] = group_arms(runs)
    assert [arm.seeds for arm in arm_set.arms] == [(1, 2)]


def test_a_setting_that_older_runs_lack_splits_no_arm_while_it_is_null() -> None:
    old, new = make_run(seed=1), make_run(seed=2, sampler={"resolution": None})
    [arm_set] = group_arms([old, new])
    assert [(arm.label, arm.seeds) for arm in arm_set.arms] == [("vanilla", (1, 2))]
    other = make_run(seed=1, sampler={"resolution": 32})
    [arm_set] = group_arms([old, new, other])
    assert [arm.label for arm in arm_set.arms] == [
        "vanilla, resolution none",
        "vanilla, resolution 32",
    ]


def test_another_setting_makes_another_arm() -> None:
    runs = [make_run(optim={"lr": lr}, seed=s) for lr in (1e-4, 3e-4) for s in (1, 2)]
    [arm_set] = group_arms(runs)
    assert [arm.label for arm in arm_set.arms] == ["vanilla, lr 0.0001", "vanilla, lr 0.0003"]


def test_rewards_and_backbones_have_sets_of_their_own_with_the_same_colours() -> None:
    runs = [
        make_run(variant, reward={"_target_": f"x.{reward}"}, backbone={"model": "tiny"})
        for reward in ("OCR", "PickScore")
        for variant in ("vanilla", "guard")
    ]
    first, second = group_arms(runs)
    assert (first.title, second.title) == ("ocr", "pickscore")
    for arm_set in (first, second):
        assert [(arm.label, arm.color) for arm in arm_set.arms] == [("vanilla", 0), ("guard", 1)]
    other = make_run(reward={"_target_": "x.OCR"}, backbone={"model": "large"})
    titles = [arm_set.title for arm_set in group_arms([*runs, other])]
    assert titles == ["ocr, model tiny", "pickscore, model tiny", "ocr, model large"]


def test_the_first_arm_is_the_reference_without_vanilla() -> None:
    [arm_set] = group_arms([make_run("rationorm"), make_run("guard")])
    assert [arm.label for arm in arm_set.arms] == ["rationorm", "guard"]


def test_a_pooled_run_averages_over_the_iterations_of_all_seeds() -> None:
    long = make_run(seed=1, share=(0.1, 0.2, 0.3, 0.4))
    short = replace(make_run(seed=2), rows=make_run(share=(0.4, 0.3, 0.2, 0.1)).rows[:4])
    [arm_set] = group_arms([long, short])
    _, share = step_means(arm_set.arms[0].pooled, "grad_share")
    assert share == pytest.approx([0.2, 7 / 30, 8 / 30, 0.3])


def test_pooled_histograms_have_the_rows_of_all_seeds() -> None:
    def with_counts(seed: int, *counts: int) -> object:
        histograms = Histograms(
            iteration=np.array([0]),
            edges=np.arange(3.0),
            counts={"ratio_raw/hist/00": np.array([counts])},
        )
        return replace(make_run(seed=seed), histograms=histograms)

    [arm_set] = group_arms([with_counts(1, 2, 3), with_counts(2, 5, 7)])  # type: ignore[list-item]
    pooled = arm_set.arms[0].pooled.histograms
    assert pooled is not None
    assert pooled.counts["ratio_raw/hist/00"].sum(0).tolist() == [7, 10]


def test_cautions_name_few_seeds_unequal_clipping_and_other_settings() -> None:
    vanilla = make_run(optim={"lr": 3e-4}, kl={"beta": 0.04})
    guard = make_run("guard", high=(0.3,) * 4, low=(0.3,) * 4, optim={"lr": 1e-4}, seed=4)
    [arm_set] = group_arms([vanilla, guard])
    text = " ".join(cautions(*arm_set.arms))
    for words in (
        "has only one seed",
        "share no seed",
        "unequal shares",
        "guard also differs from vanilla in optim.lr (0.0003 against 0.0001),"
        " kl.beta (0.04 against none).",
    ):
        assert words in text
    pairs = [make_run(variant, seed=s) for variant in ("vanilla", "guard") for s in range(5)]
    assert cautions(*group_arms(pairs)[0].arms) == ()
    assert "has only 2 seeds" in cautions(*group_arms([*pairs[:2], *pairs[5:]])[0].arms)[0]


def test_folders_without_a_seed_are_an_arm(tmp_path: Path) -> None:
    run = make_run()
    bare = replace(run, config={k: v for k, v in run.config.items() if k != "seed"})
    assert group_arms([bare])[0].arms[0].seeds == (0,)
