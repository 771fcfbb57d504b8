"""The README's commands are ones that can be given, and metrics are documented."""

import itertools
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from toy import experiment, read_metrics

from benches.memory import compose_experiment
from grpo_guard.experiment import Experiment
from grpo_guard.train import train
from lib import cli

README = (Path(cli.ROOT) / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(
    set(re.findall(r"^python scripts/.+?$|(?<=`)python scripts/[^`]+(?=`)", README, re.MULTILINE))
)
OTHERS = ("+sweeps", "--", "/path/", "...")
TRAINED = [
    c
    for c in COMMANDS
    if c.startswith("python scripts/train.py") and not any(map(c.__contains__, OTHERS))
]


def first(override):
    """An override, or the first of those that it sweeps over."""
    key, _, value = override.partition("=")
    return f"{key}={value if value.startswith('[') else value.split(',')[0]}"


@pytest.mark.parametrize("command", TRAINED)
def test_a_run_is_composed(command):
    overrides = [first(word) for word in shlex.split(command)[2:] if word != "-m"]
    assert isinstance(compose_experiment(overrides), Experiment)


def test_scripts_are_there():
    named = {
        Path(path)
        for path in itertools.chain.from_iterable(
            re.findall(r"scripts/\w+\.py", c) for c in COMMANDS
        )
    }
    assert len(TRAINED) > 20
    assert len(named) > 6
    assert all((cli.ROOT / path).is_file() for path in named)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?<=`)make (\w+)", README))))
def test_targets_are_in_the_makefile(target):
    assert re.search(
        rf"^{target}:", (cli.ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"(?:docs|conf|sweeps)/[\w./-]+\.(?:md|png|yaml)", README)))
)
def test_files_are_there(path):
    assert (cli.ROOT / path).is_file()


def test_every_metric_is_told(tmp_path):
    """And none that is not logged."""
    train(experiment(tmp_path), {})
    table = (cli.ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    told = [
        key
        for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
        for key in re.findall(r"`(.+?)`", row)
    ]
    forms = {key: re.escape(key).replace("<name>", ".+").replace("/tt", r"/\d\d") for key in told}
    logged = {key for row in read_metrics(tmp_path) for key in row}
    assert [
        key for key in logged if not any(re.fullmatch(form, key) for form in forms.values())
    ] == []
    assert [
        key for key, form in forms.items() if not any(re.fullmatch(form, one) for one in logged)
    ] == []
    with np.load(tmp_path / "histograms.npz") as histograms:
        kinds = {re.sub(r"\d\d$", "tt", key) for key in histograms if "hist" in key}
    assert all(f"`{kind}`" in table for kind in kinds)
