"""The figures: the right lines and numbers, as panels, files and JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from synthetic_runs import FALLING, RISING, make_run

from grpo_guard.report import Run, analyse_runs, read_runs
from grpo_guard.report.arms import group_arms
from grpo_guard.report.figures import files, histograms
from grpo_guard.report.figures.catalogue import list_figures
from grpo_guard.report.figures.histograms import density, draw_ridges, list_ridges, quantile
from grpo_guard.report.figures.panels import STEP, CurveFigure, Line
from grpo_guard.report.figures.plot import draw_curves, explain_signs, save_figure
from grpo_guard.report.figures.samples import cut_grid
from grpo_guard.report.runs import Histograms
from grpo_guard.report.settling import settle

NAMES = [
    "over_optimization",
    "evaluations",
    "signal",
    "ratios",
    "clip_fractions",
    "gradient_shares",
    "statistics",
    "times",
]


def figures_of(runs: Sequence[Run]) -> dict[str, CurveFigure]:
    [arm_set] = group_arms(runs)
    return {figure.name: figure for figure in list_figures(arm_set, settle(arm_set))}


def lines_of(figure: CurveFigure, title: str) -> tuple[Line, ...]:
    return next(panel.lines for panel in figure.panels if title in panel.title)


def test_every_figure_has_panels_and_can_be_drawn(pair: tuple[Path, Path]) -> None:
    figures = figures_of(read_runs(pair))
    assert list(figures) == NAMES
    for figure in figures.values():
        assert figure.panels
        assert len(draw_curves(figure).axes) == len(figure.panels)
        assert figure.reading.endswith(".")


def test_figures_can_be_drawn_for_moving_windows(
    pair: tuple[Path, Path], moving: tuple[Path, Path]
) -> None:
    for figure in figures_of(read_runs([pair[0], moving[1]])).values():
        draw_curves(figure)


def test_an_arm_is_a_mean_with_an_interval_and_a_faint_line_for_each_seed() -> None:
    golds = [{"facts": tuple(np.array(FALLING) + offset)} for offset in (0, 0.02, 0.04)]
    runs = [make_run(golds=gold, seed=seed) for seed, gold in enumerate(golds)]
    lines = lines_of(figures_of(runs)["over_optimization"], "facts")
    assert [line.label for line in lines] == ["seed 0", "seed 1", "seed 2", "mean of 3 seeds"]
    assert [line.is_mean for line in lines] == [False, False, False, True]
    assert len({line.color for line in lines}) == 1
    mean = lines[-1]
    assert mean.y == pytest.approx(np.array(FALLING) + 0.02)
    assert mean.x["proxy (p)"] == pytest.approx(np.array(RISING))
    assert (mean.low < mean.y - 0.01).all()
    assert (mean.high > mean.y + 0.01).all()


@pytest.mark.parametrize("name", ["over_optimization", "evaluations"])
def test_what_is_drawn_is_what_the_figure_says(name: str) -> None:
    figure = figures_of([make_run(seed=seed) for seed in range(3)])[name]
    x = figure.axes[0]
    for axes, panel in zip(draw_curves(figure).axes, figure.panels, strict=True):
        seeds = next(c for c in axes.collections if isinstance(c, LineCollection)).get_segments()
        means = [np.column_stack(line.get_data()) for line in axes.lines]
        for line in panel.lines:
            points = np.column_stack([line.x[x], line.y])
            assert any(np.array_equal(points, d) for d in (means if line.is_mean else seeds))


def test_a_study_lies_behind_the_arms_of_its_names() -> None:
    golds = [{"facts": tuple(np.array(FALLING) + offset)} for offset in (0, 0.02, 0.04)]
    study = [make_run(golds=gold, seed=5 + seed) for seed, gold in enumerate(golds)]
    study += [make_run("rationorm", seed=seed) for seed in range(3)]
    [result] = analyse_runs([make_run("guard", seed=0), make_run(seed=0)], study)
    assert result.study is not None
    figure = list_figures(result.arm_set, result.settled, result.study.settled)[0]
    behind, *lines = lines_of(figure, "facts")
    assert [line.arm for line in lines] == ["vanilla", "guard"]
    assert not any(line.is_behind for line in lines)
    assert (behind.arm, behind.color, behind.is_behind) == ("vanilla", lines[0].color, True)
    assert behind.label == "the study behind, mean of 3 seeds"
    assert behind.y == pytest.approx(np.array(FALLING) + 0.02)
    [axes] = draw_curves(figure).axes
    [band] = axes.patches
    heights = band.get_path().vertices[:, 1]
    assert heights.min() == pytest.approx(behind.low.min())
    assert heights.max() == pytest.approx(behind.high.max())
    [dashed] = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert dashed.get_ydata() == pytest.approx(behind.y)


@pytest.mark.parametrize("arms", [1, 12])
def test_names_and_signs_lie_over_no_panel(arms: int) -> None:
    runs = [make_run(optim={"lr": (i + 1) * 1e-5, "note": "long " * i}) for i in range(arms)]
    for data in figures_of(runs).values():
        if not data.panels:
            continue
        figure = draw_curves(data)
        FigureCanvasAgg(figure).draw()
        titles = [axes._left_title.get_window_extent() for axes in figure.axes]  # type: ignore[attr-defined]
        [legend] = figure.legends
        assert legend.get_window_extent().y0 >= max(box.y1 for box in titles)
        [signs] = figure.texts
        labels = [axes.xaxis.label.get_window_extent() for axes in figure.axes]
        assert signs.get_window_extent().y1 <= min(box.y0 for box in labels)


def test_no_power_of_ten_stands_over_a_title(pair: tuple[Path, Path]) -> None:
    figure = draw_curves(figures_of(read_runs(pair))["ratios"])
    FigureCanvasAgg(figure).draw()
    assert max(map(abs, figure.axes[0].get_ylim())) < 1e-3
    assert not any(axes.yaxis.get_offset_text().get_text() for axes in figure.axes)


def test_a_figure_says_what_its_signs_mean() -> None:
    seeds = figures_of([make_run(seed=seed) for seed in range(3)])
    assert explain_signs(seeds["over_optimization"]) == (
        "Hollow points: before training. Bars: 95 % intervals. Faint lines: single seeds."
    )
    assert explain_signs(figures_of([make_run()])["clip_fractions"]) == ""


def test_many_seeds_are_fainter() -> None:
    (few,) = figures_of([make_run(seed=seed) for seed in range(4)])["gradient_shares"].panels
    (many,) = figures_of([make_run(seed=seed) for seed in range(20)])["gradient_shares"].panels
    assert (few.seed_opacity, many.seed_opacity) == (0.3, 0.2)


def test_curves_can_be_drawn_over_images_and_hours(pair: tuple[Path, Path]) -> None:
    [line, _] = lines_of(figures_of(read_runs(pair))["evaluations"], "proxy")
    assert line.x["iteration"] == pytest.approx(np.arange(13))
    # before the first iteration nothing is spent; an iteration takes 9.6 s and its evaluation 6 s
    assert line.x["images"] == pytest.approx(192 * np.arange(13))
    assert line.x["hours"] == pytest.approx(np.arange(13) * 15.6 / 3600)


def test_gold_can_be_drawn_over_the_distance_from_the_base() -> None:
    run = make_run()
    rows = tuple(row | {"eval/kl": row["iteration"] ** 2} for row in run.rows)
    [line] = lines_of(figures_of([replace(run, rows=rows)])["over_optimization"], "facts")
    assert line.x["sqrt(KL)"] == pytest.approx(np.arange(8))
    assert "sqrt(KL)" not in figures_of([run])["over_optimization"].axes


def test_metrics_of_every_iteration_are_averaged_over_equal_parts() -> None:
    run = make_run(iterations=150)
    rows = [{"iteration": i, "images": 8.0, "reward/total": float(i % 3)} for i in range(150)]
    [line] = lines_of(
        figures_of([replace(run, rows=tuple(rows) + run.rows[8:])])["evaluations"], "reward"
    )
    assert line.y == pytest.approx(np.ones(50))
    assert line.x["iteration"].tolist() == list(range(1, 150, 3))


def test_groups_without_a_signal_are_shown() -> None:
    run = make_run()
    rows = tuple(row | {"advantage/zero_std_groups": 0.25} for row in run.rows)
    figure = figures_of([replace(run, rows=rows)])["signal"]
    [line] = lines_of(figure, "all equal")
    assert (line.y == 0.25).all()
    assert figure.panels[0].unit == "%"


def test_a_line_breaks_at_a_step_that_was_never_trained(moving: tuple[Path, Path]) -> None:
    for panel in figures_of(read_runs(moving))["ratios"].panels:
        for line in panel.lines:
            assert line.x[STEP].tolist() == list(range(7))
            assert np.isnan(line.y).tolist() == [False, False, False, True, True, False, False]


def test_an_even_share_of_the_gradient_is_among_the_steps_that_are_trained_together(
    pair: tuple[Path, Path], moving: tuple[Path, Path]
) -> None:
    for folders, share in ((pair, 1 / 9), (moving, 1 / 2), ([pair[0], moving[1]], None)):
        [panel] = figures_of(read_runs(folders))["gradient_shares"].panels
        assert panel.baseline == share


def test_csv_and_json_have_the_numbers_of_the_lines(tmp_path: Path) -> None:
    figure = figures_of([make_run()])["over_optimization"]
    files.write_csv(figure, tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["value"]) for row in rows] == pytest.approx(list(FALLING))
    assert [float(row["proxy (p)"]) for row in rows] == pytest.approx(list(RISING))
    assert {row["arm"] for row in rows} == {"vanilla"}
    written = json.loads(json.dumps(files.to_json(figure), allow_nan=False))
    [line] = written["panels"][0]["lines"]
    assert line["y"] == pytest.approx(list(FALLING), rel=1e-5)


def test_ridges_of_a_step_have_the_same_height_in_all_panels(
    pair: tuple[Path, Path], moving: tuple[Path, Path], tmp_path: Path
) -> None:
    [arm_set] = group_arms(read_runs([pair[0], moving[1]]))
    ridges = list_ridges(arm_set.arms)
    panels = draw_ridges(ridges).axes
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in panels]
    assert [title.split("\n")[0] for title in titles] == ["vanilla"] * 2 + ["guard"] * 2
    assert [title.endswith(", optimised") for title in titles] == [True, False, False, True]
    heights = [
        sorted({-round(line.get_ydata()[0]) for line in axes.lines if len(line.get_xdata()) > 2})
        for axes in panels
    ]
    assert heights == [list(range(9))] * 2 + [[0, 1, 2, 5, 6]] * 2
    histograms.write_counts(ridges, tmp_path / "a.csv")
    counts = pool_counts(arm_set.runs[0])
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["arm"] == "vanilla"]
    assert sum(int(row["rows"]) for row in rows) == counts


def pool_counts(run: Run) -> int:
    assert run.histograms is not None
    keys = [key for key in run.histograms.counts if key.startswith(("ratio_raw", "ratio_norm"))]
    return int(sum(run.histograms.counts[key].sum() for key in keys))


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_grids_are_cut_into_the_pictures_that_made_them(tmp_path: Path, count: int) -> None:
    from torch import arange, full
    from torchvision.utils import save_image

    images = full((count, 3, 12, 10), 0.0) + (arange(count) / 10)[:, None, None, None]
    columns = int(np.ceil(np.sqrt(count)))
    save_image(images, tmp_path / "grid.png", nrow=columns, padding=2, pad_value=1)
    tiles = [np.asarray(tile) for tile in cut_grid(tmp_path / "grid.png", count)]
    assert [tile.shape for tile in tiles] == [(12, 10, 3)] * count
    for k, tile in enumerate(tiles):
        assert np.abs(tile.astype(float) - 25.5 * k).max() <= 1


def test_a_density_is_per_unit_not_per_bin() -> None:
    edges = 0.05 * np.sinh(np.linspace(-7.6, 7.6, 97))
    counts = np.histogram(np.random.default_rng(0).normal(0, 2, 200_000), edges)[0]
    points, height = density(counts, edges)
    assert np.interp(0, points, height) == pytest.approx(1, abs=0.1)
    assert np.interp(2, points, height) == pytest.approx(np.exp(-0.5), abs=0.1)
    assert quantile(np.abs(edges), counts, 0.954) == pytest.approx(4, rel=0.1)


def test_a_density_of_open_bins_alone_is_flat() -> None:
    assert not density(np.array([5, 0, 0, 7]), np.arange(5.0))[1].any()


def test_a_label_may_hold_dollars(tmp_path: Path) -> None:
    """Matplotlib would take what lies between them for mathematics."""
    figure = figures_of([make_run(golds={r"$\\bad{$": FALLING})])["over_optimization"]
    save_figure(draw_curves(figure), tmp_path, "dollars")
    assert (tmp_path / "dollars.png").is_file()


def test_a_logarithmic_axis_has_plain_numbers() -> None:
    figure = draw_curves(figures_of([make_run()])["ratios"])
    figure.canvas.draw()
    labels = [
        tick.get_text().replace("\N{MINUS SIGN}", "-") for tick in figure.axes[1].get_yticklabels()
    ]
    assert any(labels)
    assert all(float(label) > 0 for label in labels if label)


def test_means_by_step_are_of_the_runs_that_are_kept() -> None:
    often = make_run(seed=0, low=(0, 0, 0.02, 0.6))
    runs = [make_run(seed=1), make_run(seed=0), often]
    named = [replace(run, folder=run.folder / str(place)) for place, run in enumerate(runs)]
    lines = lines_of(figures_of(named)["clip_fractions"], "below the range, of rows with A < 0")
    mean = next(line for line in lines if line.is_mean)
    assert mean.label == "mean of 2 seeds"
    assert mean.y[3] == pytest.approx(0.3)
    assert len(lines) == 4


def test_a_step_above_99_has_its_own_place() -> None:
    """The keys of 101 steps are sorted as numbers."""
    run = make_run()
    keys = {
        f"{kind}/{tt:02d}": 1 + tt / 100
        for kind in ("grad_share", "ratio_raw/mean", "ratio_raw/std")
        for tt in (99, 10, 100)
    }
    row = {key: value for key, value in run.rows[0].items() if not key[-2:].isdigit()} | keys
    counts = {f"ratio_raw/hist/{tt:02d}": np.array([[0, tt, 0]]) for tt in (99, 10, 100)}
    histograms = Histograms(iteration=np.array([0]), edges=np.arange(4.0), counts=counts)
    run = replace(run, rows=(row,), histograms=histograms)
    [line] = lines_of(figures_of([run])["gradient_shares"], "share of the gradient")
    assert line.x["denoising step"].tolist() == list(range(10, 101))
    assert line.y[-2:] == pytest.approx([1.99, 2.0])
    [ridges] = list_ridges(settle(group_arms([run])[0]).arms)
    assert ridges.steps == (10, 99, 100)
