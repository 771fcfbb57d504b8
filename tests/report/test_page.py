"""The page: complete, self-contained, true to the files, and clear about what was not measured."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from grpo_guard.command import compare
from grpo_guard.report import analyse_runs, read_readable_runs, read_runs, write_page
from grpo_guard.report.page import compose_page, lay_out
from grpo_guard.report.state import list_state_notes
from grpo_guard.report.summary import summarise
from grpo_guard.report.theme import marker_path
from grpo_guard.reward.checker import WorldChecker
from grpo_guard.reward.statistics import ImageStatistics
from grpo_guard.schema import ConfigError

SECTIONS = [
    "over_optimization", "evaluations", "signal", "ratios", "clip_fractions", "gradient_shares",
    "statistics", "times", "histograms", "samples", "summary", "claims",
]  # fmt: skip
DRAWN = [name for name in SECTIONS if name not in ("samples", "summary", "claims")]
VOID = ("meta", "img", "input", "br")
HOSTILE = "</script><script>document.title='injected'</script><img src=x onerror=\"alert('1')\">"


class Reader(HTMLParser):
    """Collects attributes, texts and scripts, and checks that tags close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open[-1:] == ["script"] else self.texts).append(data)

    def values(self, tag: str, name: str) -> list[str]:
        return [value for t, n, value in self.attributes if (t, n) == (tag, name)]


@pytest.fixture(scope="module")
def written(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(analyse_runs(read_runs(pair)), tmp_path_factory.mktemp("page"))


def write_empty_run(folder: Path, seed: str, metrics: str) -> Path:
    """Write a run folder that has measured nothing."""
    folder.mkdir()
    config = {"clipping": {"name": "dppo"}, "iterations": 9, "steps": 4, "note": seed}
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text(metrics)
    return folder


def read_figures(html: str) -> dict[str, Any]:
    """Return the figures that the script of the page draws, by name."""
    [text] = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', html, re.S)
    return {figure["name"]: figure for figure in json.loads(text)}


def test_every_section_is_on_the_page_and_every_figure_beside_it(written: Path) -> None:
    reader = Reader(written.read_text(encoding="utf-8"))
    assert reader.open == []
    assert reader.values("h2", "id") == [*(f"set1-{name}" for name in SECTIONS), "about"]
    for name in DRAWN:
        for kind in ("png", "svg", "csv"):
            assert f"figures/set1-{name}.{kind}" in reader.values("a", "href")
            assert (written.parent / "figures" / f"set1-{name}.{kind}").is_file()
    with Image.open(written.parent / "figures" / "set1-evaluations.png") as image:
        assert image.width > 1000


def test_without_javascript_the_page_shows_the_files_of_its_figures(written: Path) -> None:
    html = written.read_text(encoding="utf-8")
    images = re.findall(r'<noscript><img src="([^"]+)" alt="([^"]+)"></noscript>', html)
    assert len(images) == len(read_figures(html))
    assert all((written.parent / source).is_file() and alt for source, alt in images)


def test_the_page_needs_no_network(written: Path) -> None:
    reader = Reader(written.read_text(encoding="utf-8"))
    links = [value for _, name, value in reader.attributes if name in ("href", "src")]
    assert all(link.startswith(("#", "data:", "figures/")) for link in links)
    # the only addresses are in the licence of uPlot
    scripts = re.sub(r"/\*.*?\*/", "", "".join(reader.scripts), flags=re.S)
    styles = "".join(text for text in reader.texts if "{" in text)
    assert not re.search(r"https?:|fetch\(|XMLHttpRequest|import\(|WebSocket", scripts)
    assert not re.search(r"https?:|@import|url\(", styles)


def test_the_licence_of_the_charts_is_on_the_page(written: Path) -> None:
    assert "github.com/leeoniya/uPlot" in written.read_text(encoding="utf-8")


def test_the_answer_comes_first(written: Path) -> None:
    html = written.read_text(encoding="utf-8")
    order = ['class="answers"', 'class="chart"', 'class="pairs"', "<nav", "<h2"]
    places = [html.index(part) for part in order]
    assert places == sorted(places)
    assert html.count('class="pair"') == 4


def test_each_number_of_a_curve_is_in_the_files(pair: tuple[Path, Path], written: Path) -> None:
    figures = read_figures(written.read_text(encoding="utf-8"))
    rows = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in pair
    ]
    titles = {"proxy: pickscore": "eval/proxy/pickscore"}
    titles |= {f"gold: {n}": f"eval/gold/{n}" for n in ("exact", "facts", "clean")}
    panels = {panel["title"]: panel for panel in figures["set1-evaluations"]["panels"]}
    for title, key in titles.items():
        for line, metrics in zip(panels[title]["lines"], rows, strict=True):
            assert line["y"] == pytest.approx([row[key] for row in metrics], rel=1e-5)
            assert line["x"]["iteration"] == [row["iteration"] for row in metrics]
    [clip, _] = figures["set1-clip_fractions"]["panels"]
    for line, metrics in zip(clip["lines"], rows, strict=True):
        shares = [
            np.mean([row[key] for row in metrics if key in row])
            for key in sorted({k for row in metrics for k in row if "high_pos_adv" in k})
        ]
        assert line["y"] == pytest.approx(shares, rel=1e-5)


def test_the_files_have_the_numbers_of_the_page(written: Path) -> None:
    figures = read_figures(written.read_text(encoding="utf-8"))
    for name, figure in figures.items():
        path = written.parent / "figures" / f"{name}.csv"
        with path.open(encoding="utf-8", newline="") as file:
            values = [row["value"] for row in csv.DictReader(file)]
        drawn = [y for panel in figure["panels"] for line in panel["lines"] for y in line["y"]]
        assert [y is None for y in drawn] == [value == "" for value in values]
        known = [(y, float(value)) for y, value in zip(drawn, values, strict=True) if value]
        assert [y for y, _ in known] == pytest.approx([value for _, value in known], rel=1e-5)


def test_each_cell_of_the_summary_is_on_the_page(pair: tuple[Path, Path], written: Path) -> None:
    signs = str.maketrans("\N{MINUS SIGN}\N{MULTIPLICATION SIGN}\N{NO-BREAK SPACE}", "-x ")
    texts = Reader(written.read_text(encoding="utf-8")).texts
    cells = [text.translate(signs) for text in texts]
    for section in summarise(analyse_runs(read_runs(pair))[0]):
        for _, values in section.texts:
            assert set(values) <= set(cells)


def test_an_empty_run_has_a_page_that_says_so(tmp_path: Path) -> None:
    folder = write_empty_run(tmp_path / "run", "", '{"iteration": 0, "images": 8}\n{"iter')
    html = compose_page(lay_out(analyse_runs(read_runs([folder]))))
    assert html.count("Not measured in these runs.") == 10
    assert "Unfinished: dppo (1 of 9 iterations)." in html
    assert html.count(">not measured</span>") == 9
    assert "Run: dppo" in html
    assert "Settings that differ" not in html


def copy_with_setting(run: Path, folder: Path, old: str, new: str) -> Path:
    """Copy a run folder with other text in its configuration."""
    shutil.copytree(run, folder)
    config = (folder / "config.yaml").read_text(encoding="utf-8")
    assert old in config
    (folder / "config.yaml").write_text(config.replace(old, new), encoding="utf-8")
    return folder


def test_nothing_in_a_run_folder_is_injected(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = copy_with_setting(
        pair[0],
        tmp_path / HOSTILE.replace("/", "\N{DIVISION SLASH}"),
        "name: vanilla",
        f"name: {json.dumps(HOSTILE)}",
    )
    (folder / "samples" / "captions.txt").write_text(f"{HOSTILE}\n" * 4)
    lines = (folder / "metrics.jsonl").read_text().replace("eval/gold/clean", "eval/gold/<b>'\\\"")
    (folder / "metrics.jsonl").write_text(lines)
    runs, left_out = read_readable_runs([folder, pair[1]])
    html = compose_page(lay_out(analyse_runs(runs)), left_out)
    reader = Reader(html)
    assert reader.open == []
    assert not [name for _, name, _ in reader.attributes if name.startswith("on")]
    own = ("data:", "figures/set1-")
    assert [s for s in reader.values("img", "src") if not s.startswith(own)] == []
    assert [tag for tag, name, _ in reader.attributes if tag == "b"] == []
    assert html.count("<script") == 4
    assert any(HOSTILE in text for text in reader.texts)
    assert read_figures(html)["set1-evaluations"]["panels"]


def test_damaged_folders_are_left_out_with_a_line(pair: tuple[Path, Path], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(pair[1], damaged)
    (damaged / "metrics.jsonl").write_text('{"iteration": 0, "ima')
    begun = tmp_path / "begun"
    shutil.copytree(pair[1], begun)
    lines = (begun / "metrics.jsonl").read_text().splitlines(keepends=True)
    (begun / "metrics.jsonl").write_text("".join([*lines[:2], lines[2][:50] + "\n", lines[3]]))
    runs, left_out = read_readable_runs([*pair, damaged, begun])
    assert len(runs) == 3
    html = compose_page(lay_out(analyse_runs(runs)), left_out)
    assert f"Left out: {damaged.resolve()}/metrics.jsonl holds no metrics yet" in html
    assert "is left out of means and comparisons: its last evaluation is at iteration 3" in html
    assert f"{begun.resolve()}/metrics.jsonl has 1 line that cannot be read" in html


def test_a_folder_that_cannot_be_written_is_refused(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_page(analyse_runs(read_runs(pair[:1])), tmp_path / "file" / "out")


def test_runs_of_other_rewards_have_panels_of_their_own(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    other = copy_with_setting(pair[1], tmp_path / "other", "pickscore.PickScore", "ocr.OCR")
    html = compose_page(lay_out(analyse_runs(read_runs([*pair, other]))))
    figures = read_figures(html)
    arms = {
        name: [line["arm"] for line in figure["panels"][0]["lines"]]
        for name, figure in figures.items()
        if name.endswith("over_optimization")
    }
    assert arms == {
        "set1-over_optimization": ["vanilla", "guard"],
        "set2-over_optimization": ["guard"],
    }


def test_a_moving_window_is_noted(pair: tuple[Path, Path], moving: tuple[Path, Path]) -> None:
    described = "guard (2 of steps 0 to 6 at a time, each in 2 to 4 of 6 iterations)"
    [note] = list_state_notes(read_runs([pair[0], moving[1]]))
    assert note.startswith(f"Not every iteration trained the same steps: {described}. ")
    assert list_state_notes(read_runs(pair)) == []


def test_texts_about_a_moving_window_have_no_nan(
    pair: tuple[Path, Path], moving: tuple[Path, Path]
) -> None:
    [result] = analyse_runs(read_runs([pair[0], moving[1]]))
    cells = [v for section in summarise(result) for _, values in section.texts for v in values]
    texts = [item.text for claim in result.claims for item in claim.evidence]
    assert "nan" not in " ".join([*cells, *texts])


def test_a_study_lies_behind_and_answers_too(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare.main([*map(str, pair), "--behind", *map(str, pair), "--out", str(tmp_path)])
    question = "In the study behind: Is exact higher with guard than with vanilla?"
    assert question in " ".join(capsys.readouterr().out.split())
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert question in html
    assert "Bands are the means of the study behind" in html
    figures = json.loads(html.partition('id="figures">')[2].partition("</script>")[0])
    lines = figures[0]["panels"][0]["lines"]
    assert [line["behind"] for line in lines] == [True, True, False, False]
    assert not any(
        line["behind"] for figure in figures[1:] for p in figure["panels"] for line in p["lines"]
    )


def test_paths_and_settings_stay_as_they_can_be_typed(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    other = copy_with_setting(pair[1], tmp_path / "guard", "lr: 0.0002", "lr: 1.0e-05")
    runs = read_runs([pair[1], other])
    html = compose_page(lay_out(analyse_runs(runs)), ["runs/lr=1e-5 -> nowhere"])
    assert "Left out: runs/lr=1e-5 -&gt; nowhere" in html
    assert "<td>1e-5</td>" in html
    assert "optim.lr (0.0002 against 1e-5)" in html


GOLDS = {
    "world": {"_target_": "grpo_guard.reward.checker.WorldChecker"},
    "pickscore": {
        "_target_": "grpo_guard.reward.clip.ClipReward",
        "name": "pickscore_gold",
        "model": "scorer_gold",
    },
    "statistics": {"_target_": "grpo_guard.reward.statistics.ImageStatistics", "period": 8},
}


def test_the_page_says_what_its_scores_mean(pair: tuple[Path, Path]) -> None:
    runs = read_runs(pair)
    runs = [
        replace(run, config={**run.config, "eval": {**run.config["eval"], "gold": GOLDS}})
        for run in runs
    ]
    html = compose_page(lay_out(analyse_runs(runs)))
    lists = re.findall(r'<ul class="glossary muted">(.*?)</ul>', html, re.S)
    [scores, statistics] = [re.sub(r"<.*?>", "\n", text) for text in lists]
    for name in ("exact", "facts", "clean"):
        assert f"\n{name}\n (gold): {WorldChecker.meanings[name]}" in scores
    assert "\npickscore_gold\n (gold): " in scores
    assert "the learned scorer scorer_gold" in scores
    assert "\npickscore\n (proxy): its reward does not say what it measures" in scores
    assert f"\ndark fraction\n: {ImageStatistics.meanings['dark_fraction']}" in statistics
    assert html.index('class="pairs"') < html.index("glossary muted") < html.index("<nav")
    # without JavaScript, what the style sheet of <noscript> hides is not there
    assert "glossary" not in re.findall(r"<noscript><style>(.*?)</style>", html, re.S)[0]
    assert html.count('href="#set1-scores">What the scores mean</a>') == 2


def test_a_page_is_replaced_whole(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Whoever has the old page open keeps it: it is not emptied and written again."""
    results = analyse_runs(read_runs(pair[:1]))
    (tmp_path / "index.html").write_text("old", encoding="utf-8")
    with (tmp_path / "index.html").open(encoding="utf-8") as old:
        write_page(results, tmp_path)
        assert old.read() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "index.html"]


def test_captions_that_are_empty_are_no_samples(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(pair[0], folder)
    (folder / "samples" / "captions.txt").write_text("")
    runs, _ = read_readable_runs([folder])
    assert runs[0].samples is None
    html = compose_page(lay_out(analyse_runs(runs)))
    assert "samples/captions.txt cannot be read (it is missing or empty): " in html


def test_a_ninth_arm_has_another_marker_than_the_first(written: Path) -> None:
    html = written.read_text(encoding="utf-8")
    lines = read_figures(html)["set1-evaluations"]["panels"][0]["lines"]
    assert [line["marker"] for line in lines] == [marker_path(0), marker_path(1)]
    assert html.count(f'<path d="{marker_path(1)}" fill="var(--arm-1)"/>') > 1
    assert marker_path(8) == marker_path(1) != marker_path(0)
