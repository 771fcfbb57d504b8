"""The page: complete, self-contained, and clear about what was not measured."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from grpo_guard.report import read_runs, write_page
from grpo_guard.report.claims import judge_claims
from grpo_guard.report.figures.catalogue import KINDS
from grpo_guard.report.figures.samples import make_strips
from grpo_guard.report.page import list_state_notes
from grpo_guard.report.summary import summarise
from grpo_guard.schema import ConfigError

NAMES = [kind.name for kind in KINDS]


class Reader(HTMLParser):
    """Collects attributes and checks that tags close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def written(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(read_runs(pair), tmp_path_factory.mktemp("page"))


def write_empty_run(folder: Path, seed: str, metrics: str) -> Path:
    """Write a run folder that has measured nothing."""
    folder.mkdir()
    config = f"{{clipping: {{name: dppo}}, iterations: 9, steps: 4, seed: {seed}}}"
    (folder / "config.yaml").write_text(config)
    (folder / "metrics.jsonl").write_text(metrics)
    return folder


def test_every_figure_is_on_the_page_and_beside_it(written: Path) -> None:
    html = written.read_text(encoding="utf-8")
    reader = Reader(html)
    assert reader.open == []
    assert html.count("<svg ") == len(NAMES)
    ids = [value for tag, name, value in reader.attributes if tag == "h2" and name == "id"]
    assert ids == ["summary", "claims", *NAMES]
    assert sorted(path.stem for path in written.parent.glob("figures/*.png")) == sorted(NAMES)
    for path in written.parent.glob("figures/*.png"):
        with Image.open(path) as image:
            assert image.width == 1575


def test_the_page_needs_no_other_file(written: Path) -> None:
    html = written.read_text(encoding="utf-8")
    without_data = re.sub('"data:[^"]*"', "", html)
    assert not re.search(r"https?://|//[a-z]|@import|<script|<link|\ssrc=", without_data)
    links = [value for _, name, value in Reader(html).attributes if name.endswith("href")]
    assert all(link.startswith(("#", "data:")) for link in links)


def test_figures_have_descriptions_and_follow_the_theme(written: Path) -> None:
    html = written.read_text(encoding="utf-8")
    descriptions = [
        value
        for tag, name, value in Reader(html).attributes
        if tag == "svg" and name == "aria-label"
    ]
    assert len(descriptions) == len(NAMES)
    assert min(map(len, descriptions)) > 40
    assert "prefers-color-scheme:dark" in html
    for name in ("ink", "muted", "run-0", "run-1"):
        assert html.count(f"var(--{name})") > 5
    assert "#0072b2" not in html.split("</style>")[1]


def test_an_empty_run_has_a_page_that_says_so(tmp_path: Path) -> None:
    metrics = '{"iteration": 0, "images": 8}\n{"iter'
    folder = write_empty_run(tmp_path / "run", "<b>", metrics)
    html = write_page(read_runs([folder]), tmp_path / "out").read_text(encoding="utf-8")
    assert html.count("Not measured in these runs.") == len(NAMES)
    assert "Unfinished: dppo (1 of 9 iterations)." in html
    assert "left out: dppo (1)" in html
    assert html.count("not measured</div>") == 9
    assert "Run: dppo" in html
    assert "Settings that differ" not in html


def test_settings_are_escaped(tmp_path: Path) -> None:
    folders = [write_empty_run(tmp_path / n, f"<{n}>", '{"iteration": 0}') for n in "ab"]
    html = write_page(read_runs(folders), tmp_path / "out").read_text(encoding="utf-8")
    assert "dppo, seed &lt;a&gt;" in html
    assert "<a>" not in html


def test_a_folder_that_cannot_be_written_is_refused(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_page(read_runs(pair[:1]), tmp_path / "file" / "out")


def test_notes_of_rewards_are_hover_text_of_the_samples(
    pair: tuple[Path, Path], written: Path
) -> None:
    """Only the first picture of every strip has notes."""
    title = "<g><title>eval/proxy: saw &lt;it&gt;\neval/proxy: saw more</title>"
    html = written.read_text(encoding="utf-8")
    strips = make_strips(read_runs(pair))
    assert html.count(title) == html.count("<title>eval") == len(strips) > 1


def test_a_moving_window_is_noted(pair: tuple[Path, Path], moving: tuple[Path, Path]) -> None:
    described = "guard (2 of steps 0 to 6 at a time, each in 2 to 4 of 6 iterations)"
    [note] = list_state_notes(read_runs([pair[0], moving[1]]))
    assert note.startswith(f"Not every iteration trained the same steps: {described}. ")
    assert list_state_notes(read_runs(pair)) == []


def test_texts_about_a_moving_window_have_no_nan(
    pair: tuple[Path, Path], moving: tuple[Path, Path]
) -> None:
    runs = read_runs([pair[0], moving[1]])
    cells = [v for section in summarise(runs) for _, values in section.rows for v in values]
    texts = [finding.text for claim in judge_claims(runs) for finding in claim.findings]
    assert "nan" not in " ".join([*cells, *texts])
