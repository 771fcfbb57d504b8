"""The page: whole, self-contained, and honest about what is missing."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from grpo_guard.report import curves, gather, write
from grpo_guard.report.claims import claims
from grpo_guard.report.curves import density, quantile
from grpo_guard.report.page import notes, svg
from grpo_guard.report.plates import sheets
from grpo_guard.report.samples import cut, figure, strips
from grpo_guard.report.summary import summary
from grpo_guard.types import ConfigError

FIGURES = (
    "over_optimization",
    "evaluations",
    "ratios",
    "histograms",
    "clip_fractions",
    "gradient_shares",
    "samples",
    "statistics",
    "times",
)


class Reader(HTMLParser):
    """Collects attributes and checks that tags close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def written(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(gather(pair), tmp_path_factory.mktemp("page"))


def test_every_figure_is_on_the_page_and_beside_it(written: Path) -> None:
    html = written.read_text(encoding="utf-8")
    reader = Reader(html)
    assert reader.open == []
    assert html.count("<svg ") == len(FIGURES)
    ids = [value for tag, name, value in reader.found if tag == "h2" and name == "id"]
    assert ids == ["summary", "claims", *FIGURES]
    assert sorted(path.stem for path in written.parent.glob("figures/*.png")) == sorted(FIGURES)
    for path in written.parent.glob("figures/*.png"):
        with Image.open(path) as image:
            assert image.width == 1575


def test_the_page_needs_nothing_else(written: Path) -> None:
    html = written.read_text(encoding="utf-8")
    assert not re.search(
        r"https?://|//[a-z]|@import|<script|<link|\ssrc=", re.sub('"data:[^"]*"', "", html)
    )
    outside = [
        v
        for _, name, v in Reader(html).found
        if name.endswith("href") and not v.startswith(("#", "data:"))
    ]
    assert outside == []


def test_figures_have_alternative_texts_and_follow_the_theme(written: Path) -> None:
    html = written.read_text(encoding="utf-8")
    alts = [
        value for tag, name, value in Reader(html).found if tag == "svg" and name == "aria-label"
    ]
    assert len(alts) == len(FIGURES)
    assert min(map(len, alts)) > 40
    assert "prefers-color-scheme:dark" in html
    for name in ("ink", "muted", "run-0", "run-1"):
        assert html.count(f"var(--{name})") > 5
    assert "#0072b2" not in html.split("</style>")[1]


def test_an_empty_run_has_a_page_that_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(
        "{clipping: {_target_: a.Dppo}, iterations: 9, steps: 4, seed: <b>}"
    )
    (folder / "metrics.jsonl").write_text('{"iteration": 0, "images": 8}\n{"iter')
    html = write(gather([folder]), tmp_path / "out").read_text(encoding="utf-8")
    assert html.count("Not measured in these runs.") == len(FIGURES)
    assert "Unfinished: dppo (1 of 9 iterations)." in html
    assert "left out: dppo (1)" in html
    assert html.count("not measured</div>") == 9
    assert "Run: dppo" in html
    assert "Settings that differ" not in html


def test_settings_are_escaped(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
        (folder / "config.yaml").write_text(
            f"{{clipping: {{_target_: a.Dppo}}, iterations: 9, steps: 4, seed: <{folder.name}>}}"
        )
        (folder / "metrics.jsonl").write_text('{"iteration": 0}')
    html = write(gather(folders), tmp_path / "out").read_text(encoding="utf-8")
    assert "dppo, seed &lt;a&gt;" in html
    assert "<a>" not in html


def test_a_folder_that_cannot_be_written_is_refused(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        write(gather(pair[:1]), tmp_path / "file" / "out")


@pytest.mark.parametrize("count", [1, 3])
def test_every_sheet_can_be_drawn_for_any_number_of_runs(
    pair: tuple[Path, Path], count: int
) -> None:
    runs = [replace(gather(pair)[i % 2], label=f"run {i}") for i in range(count)]
    assert [
        sheet.name for sheet in sheets(runs) if (figure := sheet.draw()) and figure.axes
    ] == list(FIGURES)


def test_what_was_seen_is_hover_text_of_the_samples(pair: tuple[Path, Path], written: Path) -> None:
    """Of the first picture of every strip, the only one with notes; runs of before there were any have none."""
    runs, title = gather(pair), "<g><title>eval/proxy: saw &lt;it&gt;\neval/proxy: saw more</title>"
    html = written.read_text(encoding="utf-8")
    assert html.count(title) == html.count("<title>eval") == len(strips(runs)) > 1
    old = [replace(run, samples=replace(run.samples, notes={})) for run in runs if run.samples]
    assert "<title>" not in svg(figure(old), "")


def test_runs_with_other_captions_have_a_sheet_of_their_own(pair: tuple[Path, Path]) -> None:
    vanilla, guard = gather(pair)
    assert guard.samples is not None
    other = replace(guard, samples=replace(guard.samples, captions=tuple("abcd")))
    found = [sheet for sheet in sheets([vanilla, other]) if sheet.plate.name == "samples"]
    assert [(sheet.name, sheet.title, list(sheet.runs)) for sheet in found] == [
        ("samples", "Samples", [vanilla]),
        ("samples_2", "Samples (2)", [other]),
    ]


def test_a_moving_window_is_named(pair: tuple[Path, Path], moving: tuple[Path, Path]) -> None:
    named = "guard (2 of steps 0 to 6 at a time, each in 2 to 4 of 6 iterations)"
    [note] = notes(gather([pair[0], moving[1]]))
    assert note.startswith(f"Not every iteration trained the same steps: {named}. ")
    assert notes(gather(pair)) == []


def test_moving_windows_can_be_drawn_and_told(
    pair: tuple[Path, Path], moving: tuple[Path, Path]
) -> None:
    runs = gather([pair[0], moving[1]])
    assert [
        sheet.name for sheet in sheets(runs) if (figure := sheet.draw()) and figure.axes
    ] == list(FIGURES)
    told = [value for section in summary(runs) for _, values in section.rows for value in values]
    told += [finding.text for claim in claims(runs) for finding in claim.findings]
    assert "nan" not in " ".join(told)


def test_a_line_breaks_where_a_step_was_never_trained(moving: tuple[Path, Path]) -> None:
    for axes in curves.ratios(gather(moving)).axes:
        assert axes.get_xticks().tolist() == list(range(7))
        assert len(drawn(axes)) == 2
        for line in drawn(axes):
            assert np.isnan(line).tolist() == [False, False, False, True, True, False, False]


def test_an_even_share_is_of_the_steps_trained_together(
    pair: tuple[Path, Path], moving: tuple[Path, Path]
) -> None:
    for folders, shares in (
        (pair, [1 / 9]),
        (moving, [1 / 2]),
        ([pair[0], moving[1]], [1 / 2, 1 / 9]),
    ):
        figure = curves.gradient_shares(gather(folders))
        assert [line.get_ydata()[0] for line in figure.axes[0].lines[2:]] == pytest.approx(shares)
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert ["smallest" in label for label in labels] == [folder in pair for folder in folders]


def test_ridges_of_one_step_are_at_one_height(
    pair: tuple[Path, Path], moving: tuple[Path, Path]
) -> None:
    runs = gather([pair[0], moving[1]])
    heights = [
        sorted({-round(line[0]) for line in drawn(axes)}) for axes in curves.histograms(runs).axes
    ]
    assert heights == [list(range(9))] * 2 + [[0, 1, 2, 5, 6]] * 2


def test_panels_of_the_clip_have_the_same_steps(
    pair: tuple[Path, Path], moving: tuple[Path, Path]
) -> None:
    left, right = curves.clip_fractions(gather([pair[0], moving[1]])).axes
    assert left.get_xlim() == right.get_xlim()
    assert left.get_xticks().tolist() == right.get_xticks().tolist() == list(range(9))


def drawn(axes: Axes) -> list[np.ndarray]:
    """The heights of lines with more than two points."""
    return [np.asarray(line.get_ydata(), float) for line in axes.lines if len(line.get_xdata()) > 2]


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_grids_are_cut_where_the_run_folder_joined_them(tmp_path: Path, count: int) -> None:
    from torch import arange, full
    from torchvision.utils import save_image

    images = full((count, 3, 12, 10), 0.0) + (arange(count) / 10)[:, None, None, None]
    save_image(
        images, tmp_path / "grid.png", nrow=int(np.ceil(np.sqrt(count))), padding=2, pad_value=1
    )
    tiles = [np.asarray(tile) for tile in cut(tmp_path / "grid.png", count)]
    assert [tile.shape for tile in tiles] == [(12, 10, 3)] * count
    for k, tile in enumerate(tiles):
        assert np.abs(tile.astype(float) - 25.5 * k).max() <= 1


def test_a_common_start_is_shown_once(pair: tuple[Path, Path]) -> None:
    assert [strip.label for strip in strips(gather(pair))] == [
        "start",
        "vanilla\niteration 12",
        "guard\niteration 12",
    ]


def test_a_density_is_per_unit_not_per_bin() -> None:
    edges = 0.05 * np.sinh(np.linspace(-7.6, 7.6, 97))
    counts = np.histogram(np.random.default_rng(0).normal(0, 2, 200_000), edges)[0]
    at, height = density(counts, edges)
    assert np.interp(0, at, height) == pytest.approx(1, abs=0.1)
    assert np.interp(2, at, height) == pytest.approx(np.exp(-0.5), abs=0.1)
    assert quantile(np.abs(edges), counts, 0.954) == pytest.approx(4, rel=0.1)


def test_a_density_of_open_bins_alone_is_flat() -> None:
    assert not density(np.array([5, 0, 0, 7]), np.arange(5.0))[1].any()
