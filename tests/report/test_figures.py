"""The figures: drawn for any runs, with the right steps, and cut from the right pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes

from grpo_guard.report import Run, read_runs
from grpo_guard.report.figures.catalogue import KINDS, list_figures
from grpo_guard.report.figures.clip_fractions import draw_clip_fractions
from grpo_guard.report.figures.gradient_shares import draw_gradient_shares
from grpo_guard.report.figures.histograms import density, draw_histograms, quantile
from grpo_guard.report.figures.ratios import draw_ratios
from grpo_guard.report.figures.samples import cut_grid, draw_samples, make_strips
from grpo_guard.report.markup import to_svg


def names_of_drawn(runs: tuple[Run, ...]) -> list[str]:
    """Draw every figure and return the names of those that have axes."""
    drawn = [(page_figure.name, page_figure.draw()) for page_figure in list_figures(runs)]
    return [name for name, figure in drawn if figure is not None and figure.axes]


def line_heights(axes: Axes) -> list[np.ndarray]:
    """Return the heights of all lines with more than two points."""
    return [np.asarray(line.get_ydata(), float) for line in axes.lines if len(line.get_xdata()) > 2]


@pytest.mark.parametrize("count", [1, 3])
def test_every_figure_can_be_drawn_for_any_number_of_runs(
    pair: tuple[Path, Path], count: int
) -> None:
    runs = tuple(replace(read_runs(pair)[i % 2], label=f"run {i}") for i in range(count))
    assert names_of_drawn(runs) == [kind.name for kind in KINDS]


def test_every_figure_can_be_drawn_for_moving_windows(
    pair: tuple[Path, Path], moving: tuple[Path, Path]
) -> None:
    assert names_of_drawn(read_runs([pair[0], moving[1]])) == [kind.name for kind in KINDS]


def test_samples_without_notes_have_no_hover_text(pair: tuple[Path, Path]) -> None:
    runs = [replace(r, samples=replace(r.samples, notes={})) for r in read_runs(pair) if r.samples]
    assert "<title>" not in to_svg(draw_samples(runs), "")


def test_runs_with_other_captions_have_their_own_figure(pair: tuple[Path, Path]) -> None:
    vanilla, guard = read_runs(pair)
    assert guard.samples is not None
    other = replace(guard, samples=replace(guard.samples, captions=tuple("abcd")))
    figures = [f for f in list_figures([vanilla, other]) if f.kind.name == "samples"]
    assert [(figure.name, figure.title, list(figure.runs)) for figure in figures] == [
        ("samples", "Samples", [vanilla]),
        ("samples_2", "Samples (2)", [other]),
    ]


def test_a_line_breaks_at_a_step_that_was_never_trained(moving: tuple[Path, Path]) -> None:
    for axes in draw_ratios(read_runs(moving)).axes:
        assert axes.get_xticks().tolist() == list(range(7))
        assert len(line_heights(axes)) == 2
        for line in line_heights(axes):
            assert np.isnan(line).tolist() == [False, False, False, True, True, False, False]


def test_an_even_share_is_among_the_steps_that_are_trained_together(
    pair: tuple[Path, Path], moving: tuple[Path, Path]
) -> None:
    for folders, shares in (
        (pair, [1 / 9]),
        (moving, [1 / 2]),
        ([pair[0], moving[1]], [1 / 2, 1 / 9]),
    ):
        figure = draw_gradient_shares(read_runs(folders))
        assert [line.get_ydata()[0] for line in figure.axes[0].lines[2:]] == pytest.approx(shares)
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert ["smallest" in label for label in labels] == [folder in pair for folder in folders]


def test_ridges_of_a_step_have_the_same_height_in_all_panels(
    pair: tuple[Path, Path], moving: tuple[Path, Path]
) -> None:
    panels = draw_histograms(read_runs([pair[0], moving[1]])).axes
    heights = [sorted({-round(line[0]) for line in line_heights(axes)}) for axes in panels]
    assert heights == [list(range(9))] * 2 + [[0, 1, 2, 5, 6]] * 2


def test_panels_of_clip_fractions_have_the_same_steps(
    pair: tuple[Path, Path], moving: tuple[Path, Path]
) -> None:
    left, right = draw_clip_fractions(read_runs([pair[0], moving[1]])).axes
    assert left.get_xlim() == right.get_xlim()
    assert left.get_xticks().tolist() == right.get_xticks().tolist() == list(range(9))


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


def test_a_common_start_appears_once(pair: tuple[Path, Path]) -> None:
    assert [strip.label for strip in make_strips(read_runs(pair))] == [
        "start",
        "vanilla\niteration 12",
        "guard\niteration 12",
    ]


def test_a_density_is_per_unit_not_per_bin() -> None:
    edges = 0.05 * np.sinh(np.linspace(-7.6, 7.6, 97))
    counts = np.histogram(np.random.default_rng(0).normal(0, 2, 200_000), edges)[0]
    points, height = density(counts, edges)
    assert np.interp(0, points, height) == pytest.approx(1, abs=0.1)
    assert np.interp(2, points, height) == pytest.approx(np.exp(-0.5), abs=0.1)
    assert quantile(np.abs(edges), counts, 0.954) == pytest.approx(4, rel=0.1)


def test_a_density_of_open_bins_alone_is_flat() -> None:
    assert not density(np.array([5, 0, 0, 7]), np.arange(5.0))[1].any()
