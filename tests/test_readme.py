"""The README's commands are ones that can be given."""

import itertools
import re
import shlex
from pathlib import Path

import pytest

import cli
from footprint import composed
from grpo_guard.experiment import Experiment

README = (Path(cli.ROOT) / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"^python scripts/.+?$|(?<=`)python scripts/[^`]+(?=`)", README, re.MULTILINE)))
OTHERS = ("+sweeps", "--", "/path/", "...")
TRAINED = [c for c in COMMANDS if c.startswith("python scripts/train.py") and not any(map(c.__contains__, OTHERS))]


def first(override):
    """An override, or the first of those that it sweeps over."""
    key, _, value = override.partition("=")
    return f"{key}={value if value.startswith('[') else value.split(',')[0]}"


@pytest.mark.parametrize("command", TRAINED)
def test_a_run_is_composed(command):
    overrides = [first(word) for word in shlex.split(command)[2:] if word != "-m"]
    assert isinstance(composed(overrides), Experiment)


def test_scripts_are_there():
    named = {Path(path) for path in itertools.chain.from_iterable(re.findall(r"scripts/\w+\.py", c) for c in COMMANDS)}
    assert len(TRAINED) > 20
    assert len(named) > 6
    assert all((cli.ROOT / path).is_file() for path in named)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?<=`)make (\w+)", README))))
def test_targets_are_in_the_makefile(target):
    assert re.search(rf"^{target}:", (cli.ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:docs|conf|sweeps)/[\w./-]+\.(?:md|png|yaml)", README))))
def test_files_are_there(path):
    assert (cli.ROOT / path).is_file()
