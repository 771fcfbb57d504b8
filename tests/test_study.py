"""What the study and the README say of over-optimization is what the committed runs give."""

import gzip
import json
import re
from types import SimpleNamespace

import pytest

from pages import study

RUNS = sorted(study.RUNS.iterdir())


@pytest.fixture(scope="module")
def result():
    return study.analyse_headline()


@pytest.mark.parametrize("page", ["PAGE", "README"])
def test_results_are_those_of_the_runs(result, page):
    text = getattr(study, page).read_text(encoding="utf-8")
    make = {"PAGE": study.describe_results, "README": study.summarize}[page]
    assert study.insert(text, make(result)) == text, "run make study"


def read_change(folder, key):
    """The change of a metric from the first to the last evaluation, read without the package."""
    lines = gzip.decompress((folder / "metrics.jsonl.gz").read_bytes()).splitlines()
    values = [row[key] for row in map(json.loads, lines) if key in row]
    return values[-1] - values[0]


@pytest.mark.parametrize("arm", ["vanilla", "guard"])
def test_the_numbers_of_the_readme_are_means_over_the_runs(arm):
    changes = [
        read_change(folder, "eval/gold/exact")
        for folder in RUNS
        if folder.name.startswith(f"{arm}_")
    ]
    mean = sum(changes) / len(changes)
    words = {"vanilla": "vanilla", "guard": "Guard"}[arm]
    readme = study.README.read_text(encoding="utf-8").replace("\N{MINUS SIGN}", "-")
    quoted = re.search(rf"by\s+([-+][\d.]+) ± [\d.]+ with {words}", " ".join(readme.split()))
    assert float(quoted[1]) == pytest.approx(mean, abs=10 ** -len(quoted[1].partition(".")[2]))


def test_every_finished_run_is_counted():
    page = study.PAGE.read_text(encoding="utf-8")
    headline = [f for f in RUNS if re.fullmatch(r"(vanilla|guard)_seed\d+", f.name)]
    assert f"| `over_optimization` | {len(headline)} of 16 |" in page
    assert {folder.name for folder in RUNS} >= {"vanilla_seed1", "guard_seed1"}


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
    counts = study.count_faults(SimpleNamespace(folder=tmp_path), 200)
    assert [name for name, count in counts.items() if count] == kinds
    assert sum(counts.values()) == 0.5
