"""Averages over iterations at each denoising step, and their errors."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_runs import GROWING, SHIFTED, WINDOWS, keep_windows, make_run

from grpo_guard.report import per_step


def test_rows_per_step_leave_out_the_first_update() -> None:
    assert per_step.rows_per_step(make_run(), 4) == 96
    assert per_step.rows_per_step(make_run(steps_per_sample=1), 4) == 24
    assert per_step.rows_per_step(make_run(updates=4), 4) == 144
    assert per_step.rows_per_step(make_run(updates=1), 4) == 192


def test_the_error_of_a_ratio_mean_counts_rows_and_iterations() -> None:
    ratio = per_step.ratio_statistics(make_run(), "raw")
    assert ratio is not None
    assert ratio.error == pytest.approx(np.array(GROWING) / np.sqrt(96 * 8))


def test_the_error_of_a_ratio_mean_includes_the_scatter_of_iterations() -> None:
    run = make_run()
    for i, row in enumerate(run.rows):
        row["ratio_raw/mean/03"] = 1e-3 * (-1) ** i  # type: ignore[index]
    ratio = per_step.ratio_statistics(run, "raw")
    assert ratio is not None
    assert ratio.error[3] == pytest.approx(1e-3 * np.sqrt(8 / 7) / np.sqrt(8))


def test_a_moving_window_counts_the_rows_and_iterations_of_each_step() -> None:
    run = keep_windows(make_run(steps_per_sample=1), *WINDOWS)
    ratio = per_step.ratio_statistics(run, "raw")
    assert ratio is not None
    assert ratio.iterations.tolist() == [2, 4, 6, 4]
    assert ratio.rows == 48
    assert ratio.mean == pytest.approx(np.array(SHIFTED))
    assert ratio.error == pytest.approx(np.array(GROWING) / np.sqrt(48 * ratio.iterations))


def test_a_moving_window_has_the_scatter_of_the_iterations_that_trained_a_step() -> None:
    run = keep_windows(make_run(), *WINDOWS)
    for i, row in enumerate(run.rows):
        if "ratio_raw/mean/03" in row:
            row["ratio_raw/mean/03"] = 1e-2 * (-1) ** i  # type: ignore[index]
    ratio = per_step.ratio_statistics(run, "raw")
    assert ratio is not None
    assert ratio.error[3] == pytest.approx(1e-2 * np.sqrt(4 / 3) / np.sqrt(4))


def test_clipped_shares_need_rows_of_either_sign() -> None:
    run = make_run(high=(0.1, 0.2, 0.3, 0.4), low=(0.5, 0.6, 0.7, 0.8))
    for row in run.rows:
        del row["clip/high_pos_adv/00"], row["clip/low_neg_adv/02"]  # type: ignore[attr-defined]
    shares = per_step.clipped_shares(run)
    assert shares is not None
    assert shares.step.tolist() == [1, 3]
    assert shares.high == pytest.approx(np.array([0.2, 0.4]))
    assert shares.low == pytest.approx(np.array([0.6, 0.8]))


def test_the_gradient_has_no_spread_if_iterations_trained_different_steps() -> None:
    assert per_step.gradient_spread(make_run()) == pytest.approx(30)
    assert np.isnan(per_step.gradient_spread(keep_windows(make_run(), *WINDOWS)))
