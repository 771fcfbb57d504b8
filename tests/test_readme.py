"""The README names files, targets and commands that exist; every metric is documented."""

import re
import shlex

import numpy as np
import pytest
from composing import compose_run
from toy import experiment, read_metrics

from grpo_guard.console import cli
from grpo_guard.experiment import Experiment
from grpo_guard.train import train

README = (cli.ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(
    set(re.findall(r"^python scripts/.+?$|(?<=`)python scripts/[^`]+(?=`)", README, re.MULTILINE))
)
EXCLUDED = ("+sweeps", "--", "/path/", "...")
"""Parts of commands that cannot be composed here; tests/test_sweeps.py composes the sweeps."""
TRAINING = [
    command
    for command in COMMANDS
    if command.startswith("python scripts/train.py")
    and not any(part in command for part in EXCLUDED)
]


def first_value(override):
    """Return an override, or the first of the overrides that it sweeps over."""
    key, _, value = override.partition("=")
    return override if value.startswith("[") else f"{key}={value.split(',')[0]}"


@pytest.mark.parametrize("command", TRAINING)
def test_a_training_command_can_be_composed(command):
    overrides = [first_value(word) for word in shlex.split(command)[2:] if word != "-m"]
    cfg = compose_run(*overrides, "output=unused", "logger=none")
    assert isinstance(cli.build(cfg), Experiment)


def test_scripts_exist():
    scripts = {path for command in COMMANDS for path in re.findall(r"scripts/\w+\.py", command)}
    assert len(TRAINING) > 20
    assert len(scripts) > 6
    assert all((cli.ROOT / path).is_file() for path in scripts)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?<=`)make (\w+)", README))))
def test_targets_are_in_the_makefile(target):
    makefile = (cli.ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"(?:docs|conf|sweeps)/[\w./-]+\.(?:md|png|yaml)", README)))
)
def test_files_exist(path):
    assert (cli.ROOT / path).is_file()


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
