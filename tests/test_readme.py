"""The README is short and whole, and exactly the logged metrics are documented."""

import re

import numpy as np
from documents import blocks
from toy import experiment, read_metrics

from grpo_guard.console import cli
from grpo_guard.train import train

README = (cli.ROOT / "README.md").read_text(encoding="utf-8")
MOST_WORDS = 600
FOLDERS = ("conf", "sweeps", "grpo_guard", "scripts", "tests", "docs")


def test_it_is_short():
    assert len([word for word in README.split() if re.search(r"\w", word)]) <= MOST_WORDS


def test_it_shows_the_loop():
    """tests/test_docs.py compares the quote with the code."""
    (loop,) = blocks(README, "python")
    assert loop.startswith("def train(")
    assert len(loop.splitlines()) <= 12


def test_it_has_eight_commands():
    section = README.partition("## Eight commands")[2].partition("\n## ")[0]
    assert len(re.findall(r"^\| [^|]+ \| `python scripts/[^`]+` \|$", section, re.MULTILINE)) == 8


def test_every_folder_has_a_gloss():
    rows = dict(re.findall(r"^\| `(\w+)/` \| (.+) \|$", README, re.MULTILINE))
    assert sorted(rows) == sorted(FOLDERS)


def test_it_explains_its_words():
    section = README.partition("## Words")[2].partition("\n## ")[0]
    words = re.findall(r"^\| (.+?) \| .+ \|$", section, re.MULTILINE)
    assert {"proxy, gold", "group", "step", "ratio", "clip"} <= set(words)


def test_it_says_how_to_reach_gated_models():
    assert "hf auth login" in README
    assert "licence" in README.partition("hf auth login")[0]


def test_exactly_the_logged_metrics_are_documented(tmp_path):
    train(experiment(tmp_path), {})
    document = (cli.ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`.*?) \|", document, re.MULTILINE)
    documented = [key for cell in cells for key in re.findall(r"`(.+?)`", cell)]
    patterns = {
        key: re.compile(re.escape(key).replace("<name>", ".+").replace("/tt", r"/\d\d"))
        for key in documented
    }
    logged = {key for row in read_metrics(tmp_path) for key in row}
    assert [key for key in logged if not any(p.fullmatch(key) for p in patterns.values())] == []
    assert [key for key, p in patterns.items() if not any(map(p.fullmatch, logged))] == []
    with np.load(tmp_path / "histograms.npz") as histograms:
        kinds = {re.sub(r"\d\d$", "tt", key) for key in histograms if "hist" in key}
    assert all(f"`{kind}`" in document for kind in kinds)
