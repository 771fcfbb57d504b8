"""What the study and the README say of over-optimization is what the committed runs give."""

import gzip
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

import write_study
from grpo_guard.report import reading
from grpo_guard.report.figures.along_run import DISTANCE
from grpo_guard.report.reading import read_runs
from grpo_guard.report.statistics import Interval
from study.arms import ARMS, SEEDS, analyse_arms
from study.pictures import count_faults
from study.proxies import PROXIES, compare_proxies
from study.summary import SHOWN, _conclude

RUNS = sorted(write_study.HEADLINE_RUNS.iterdir())
OTHER_RUNS = sorted(write_study.OTHER_RUNS.glob("*_seed*"))


def test_results_are_those_of_the_runs():
    page, summary = write_study.compose_results(*write_study.analyse_study())
    for path, text in {write_study.PAGE: page, write_study.README: summary}.items():
        written = path.read_text(encoding="utf-8")
        assert write_study.insert(written, text) == written, "run make study"


def read_page():
    return write_study.PAGE.read_text(encoding="utf-8").replace("\N{MINUS SIGN}", "-")


def read_values(folder, key):
    """The values of a metric at all evaluations, read without the package."""
    lines = gzip.decompress((folder / "metrics.jsonl.gz").read_bytes()).splitlines()
    return [row[key] for row in map(json.loads, lines) if key in row]


def read_change(folder, key):
    """The change of a metric from the first to the last evaluation."""
    values = read_values(folder, key)
    return values[-1] - values[0]


def read_ends(cell):
    """The ends of an interval that is written as a middle and half a width, or as its ends."""
    if "(" in cell:
        low, high = re.findall(r"[+-][\d.]+", cell.partition("(")[2])
        return float(low), float(high)
    middle, half = map(float, cell.split("±"))
    return middle - half, middle + half


def proxy_of(name):
    """The key of the proxy that an arm is trained on."""
    return "eval/proxy/geneval" if name.endswith("_geneval") else "eval/proxy/pickscore"


def name_outcome(low, high):
    if low > 0:
        return "a rise"
    if high < 0:
        return "a loss"
    return "no loss above 0.05" if low > -0.05 else "undecided"


@pytest.mark.parametrize("name", ["vanilla", "guard", *SHOWN])
def test_the_numbers_of_the_readme_are_means_over_the_runs(name):
    folders = [f for f in (*RUNS, *OTHER_RUNS) if f.name.rpartition("_seed")[0] == name]
    readme = write_study.README.read_text(encoding="utf-8").replace("\N{MINUS SIGN}", "-")
    rows = [row for row in readme.splitlines() if row.startswith(f"| {ARMS[name]} | ")]
    assert len(rows) == (len(folders) >= 3)
    for row in rows:
        _, seeds, exact, shows, proxy = [cell.strip() for cell in row.strip("|").split("|")]
        assert int(seeds) == len(folders)
        assert shows == name_outcome(*read_ends(exact))
        for cell, key in {exact: "eval/gold/exact", proxy: proxy_of(name)}.items():
            mean = sum(read_change(folder, key) for folder in folders) / len(folders)
            quoted = re.split(r"[±(]", cell)[0].strip()
            assert float(quoted) == pytest.approx(mean, abs=10 ** -len(quoted.partition(".")[2]))


def test_every_finished_run_is_counted():
    page = read_page()
    headline = [f for f in RUNS if re.fullmatch(r"(vanilla|guard)_seed\d+", f.name)]
    assert f"| `over_optimization` | {len(headline)} of 16 |" in page
    assert {folder.name for folder in RUNS} >= {"vanilla_seed1", "guard_seed1"}
    assert f"runs, {len(OTHER_RUNS)} are finished" in page


@pytest.mark.parametrize("name", sorted({f.name.rpartition("_seed")[0] for f in OTHER_RUNS}))
@pytest.mark.parametrize(("column", "key"), [(2, None), (3, "eval/gold/exact"), (4, "eval/kl")])
def test_the_numbers_of_another_arm_are_means_over_its_runs(name, column, key):
    runs = [f for f in OTHER_RUNS if f.name.startswith(f"{name}_seed")]
    mean = sum(read_change(folder, key or proxy_of(name)) for folder in runs) / len(runs)
    (row,) = (r for r in read_page().splitlines() if r.startswith(f"| {ARMS[name]} | {len(runs)} "))
    quoted = re.split(r"[±(]", row.strip("|").split("|")[column])[0].strip()
    assert float(quoted) == pytest.approx(mean, abs=10 ** -len(quoted.partition(".")[2]))


def test_a_run_under_the_name_of_another_arm_is_refused(tmp_path):
    run = write_study.HEADLINE_RUNS / "vanilla_seed1"
    shutil.copytree(run, tmp_path / "vanilla_shuffled_seed1")
    with pytest.raises(ValueError, match="not the runs of one arm"):
        analyse_arms(read_runs([run]), tmp_path)


def test_proxies_are_compared_at_equal_distance_and_not_at_equal_proxy():
    """Their scores have no common scale."""
    rows = [row for row in read_page().splitlines() if row.startswith("| ")]
    (row,) = (r for r in rows if r.startswith("| vanilla | vanilla, pickscore_terse |"))
    *_, at_proxy, at_distance, _ = row.strip("| ").split(" | ")
    assert at_proxy == "-"
    assert re.match(r"[+-]0\.\d+", at_distance)


def test_the_figure_of_the_proxies_has_the_runs_of_each():
    _, arms = write_study.analyse_study()
    figure = compare_proxies(arms)
    assert len(figure.panels) == 2
    for panel, objective in zip(figure.panels, ("vanilla", "guard"), strict=True):
        means = [line for line in panel.lines if line.is_mean]
        finished = {e: p for e, p in PROXIES.items() if len(arms[objective + e].runs) == SEEDS}
        for (ending, proxy), line in zip(finished.items(), means, strict=True):
            folders = [run.folder for run in arms[objective + ending].runs]
            distances = [read_values(folder, "eval/kl")[-1] ** 0.5 for folder in folders]
            golds = [read_values(folder, "eval/gold/exact")[-1] for folder in folders]
            assert line.arm == proxy
            assert line.x[DISTANCE][-1] == pytest.approx(np.mean(distances))
            assert line.y[-1] == pytest.approx(np.mean(golds))


def test_the_lenient_proxy_is_told_by_the_pictures_and_by_its_own_verdict():
    """The README's sentence has the difference of the means; the page has the counted faults."""
    changes = {}
    too_many = {}
    for name in ("vanilla_geneval", "guard_geneval"):
        runs = read_runs([f for f in OTHER_RUNS if f.name.startswith(name)])
        changes[name] = np.mean([read_change(run.folder, "eval/gold/exact") for run in runs])
        counts = [count_faults(run, 200)["things that are too many"] for run in runs]
        too_many[name] = np.mean(counts)
    difference = changes["guard_geneval"] - changes["vanilla_geneval"]
    readme = write_study.README.read_text(encoding="utf-8").replace("\N{MINUS SIGN}", "-")
    (quoted,) = re.findall(r"lenient accuracy, no restraint shows \(([+-][\d.]+) ", readme)
    assert float(quoted) == pytest.approx(difference, abs=0.005)
    row = " | ".join(f"{count:.2f}" for count in too_many.values())
    assert f"| things that are too many | 0.00 | {row} |" in read_page()
    shuffled = read_runs([f for f in OTHER_RUNS if "_shuffled_" in f.name])
    counts = [count_faults(run, 200)["things that are too many"] for run in shuffled]
    text = " ".join(read_page().split())
    (drift,) = re.findall(r"in the runs without a signal, ([.\d]+) a picture are too many", text)
    assert float(drift) == pytest.approx(np.mean(counts), abs=0.005)


def test_every_run_is_read_once(monkeypatch):
    folders = []
    read_run = reading.read_run
    monkeypatch.setattr(reading, "read_run", lambda path: folders.append(path) or read_run(path))
    write_study.compose_results(*write_study.analyse_study())
    assert sorted(folder.name for folder in folders) == sorted(
        folder.name for folder in (*RUNS, *OTHER_RUNS)
    )


@pytest.mark.parametrize(
    ("note", "kinds"),
    [
        ("circle: 2 instead of 1", ["things that are too many"]),
        ("2 things too many", ["things that are too many"]),
        ("cyan triangle: 2 instead of 4", ["things that are missing"]),
        ("no yellow cross", ["things that are missing"]),
        ("cyan square is not left of red square", ["things in a wrong place"]),
        ('"open" is not written', ["words that are not written"]),
    ],
)
def test_every_note_is_a_fault_of_one_kind(note, kinds, tmp_path):
    (tmp_path / "samples").mkdir()
    picture = {"notes": {"eval/gold/world": [note]}}
    file = tmp_path / "samples/000200.json"
    file.write_text(json.dumps([picture, {"notes": {"eval/gold/world": []}}]), encoding="utf-8")
    counts = count_faults(SimpleNamespace(folder=tmp_path), 200)
    assert [name for name, count in counts.items() if count] == kinds
    assert sum(counts.values()) == 0.5


def test_a_difference_that_does_not_matter_is_a_whole_sentence():
    small = Interval(value=0.0, low=-0.01, high=0.01, seeds=8)
    guard = SimpleNamespace(
        other=SimpleNamespace(label="guard"),
        pairs=8,
        golds={"exact": SimpleNamespace(at_end=small)},
    )
    headline = SimpleNamespace(
        comparisons=(guard,), change_of=lambda arm: SimpleNamespace(over_optimises="shows")
    )
    text = _conclude(headline)
    assert text.startswith("With PickScore, Guard makes no difference that matters (exact pictures")


@pytest.mark.parametrize("page", ["no marks", write_study.BEGIN, write_study.END])
def test_a_page_without_both_marks_is_not_written(page):
    with pytest.raises(ValueError, match="the page lacks"):
        write_study.insert(page, "results")
