"""What needs no model starts without torch, so that it answers within a second."""

import subprocess
import sys

import pytest

from grpo_guard import __version__
from grpo_guard.command.__main__ import COMMANDS
from grpo_guard.console import cli

PROGRAM = """
import contextlib, sys
sys.path.insert(0, {root!r})
from hydra.core.global_hydra import GlobalHydra
from grpo_guard.command.__main__ import main
for words in {lines!r}:
    with contextlib.suppress(SystemExit):
        main(words)
    GlobalHydra.instance().clear()
    if "torch" in sys.modules:
        raise ImportError(f"torch is imported by {{words}}")
"""
ANSWERS = [[name, option] for name in COMMANDS for option in ("--help", "--version")]
ANSWERS += [["train", "--cfg", "job"], ["train", "--info", "defaults"]]
REFUSALS = {
    "train clipping=gard": "error: clipping=gard is no choice; did you mean guard?",
    "train cliping=guard": "error: cliping is no setting; did you mean clipping?",
    "train optim.lr=abc": "error: optim.lr=abc is no number; give one, such as 0.0001",
    "train seed": "error: seed",
    "train -m clipping=guard,gard": "error: clipping=gard",
    "sample run --checkpoint 9": "error: --checkpoint=9 is not there; choose from 1, last",
    "sample run --steps 0": "error: --steps=0 is not positive",
    "sample run --resolution 0": "error: --resolution=0 is not positive",
    "sample nowhere": "error: nowhere has no checkpoint",
    "evaluate nowhere": "error: RUN|PICTURES=nowhere is no folder",
    "evaluate run --count 0": "error: --count=0 is not positive",
    "evaluate run --each x": "error: argument --each: invalid int value: 'x'",
    "calibrate run prompts a b": "error: PICTURES=run holds no .png",
    "bench speed": "error: argument BENCHMARK: invalid choice: 'speed'",
    "bench memory --mesure": "error: unrecognized arguments: --mesure",
    "compare nowhere": "nowhere is no folder; give a run folder",
    "compare run --watch 0": "error: --watch=0 is not positive",
    "verify nowhere": "error: RUN=nowhere kept no trajectory; train with keep_trajectory=N",
    "wandb-report": "error: the following arguments are required: RUN",
}
"""Arguments, and part of the line that refuses them."""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Run all command lines in one process, which fails if one of them imports torch."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "run/checkpoints/000001").mkdir(parents=True)
    lines = [*ANSWERS, *(text.split() for text in REFUSALS)]
    program = PROGRAM.format(root=str(cli.ROOT), lines=lines)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in folder.iterdir()] == ["run"]
    return done


def test_help_and_version_need_no_torch(answers):
    lines = answers.stdout.splitlines()
    assert lines.count(f"grpo_guard {__version__}") == len(COMMANDS)
    usages = [line for line in lines if line.startswith("usage: ")]
    assert [usage.split()[2] for usage in usages] == [*COMMANDS]


def test_refusals_need_no_torch(answers):
    errors = [line[line.find("error: ") :] for line in answers.stderr.splitlines()]
    errors = [line for line in errors if line.startswith("error: ")]
    assert len(errors) == len(REFUSALS)
    for error, (words, part) in zip(errors, REFUSALS.items(), strict=True):
        assert part in error, words


def test_training_starts_without_the_libraries_that_plot():
    program = "import sys, grpo_guard.command.training; print({'matplotlib'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
