"""What needs no model starts without torch, so that it answers within a second."""

import subprocess
import sys

import pytest

from grpo_guard import __version__
from grpo_guard.console import cli

PROGRAM = """
import contextlib, sys
sys.path.insert(0, {root!r})
from importlib import import_module
sys.argv = ["train.py"]
module = import_module("grpo_guard.command." + {name!r})
for words in {lines!r}:
    sys.argv = ["train.py", *words]
    with contextlib.suppress(SystemExit):
        module.start()
    from hydra.core.global_hydra import GlobalHydra
    GlobalHydra.instance().clear()
print("torch" in sys.modules)
"""
LINES = [
    ["--help"],
    ["--version"],
    ["--cfg", "job"],
    ["--info", "defaults"],
    ["clipping=gard"],
    ["cliping=guard"],
    ["optim.lr=abc"],
    ["seed"],
    ["-m", "clipping=guard,gard"],
]


@pytest.mark.parametrize(("name", "lines"), [("train", LINES), ("preflight", LINES[:1])])
def test_help_and_refusals_need_no_torch(name, lines, tmp_path):
    program = PROGRAM.format(root=str(cli.ROOT), name=name, lines=lines)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    *_, has_torch = done.stdout.splitlines()
    assert has_torch == "False"
    refusals = done.stderr.splitlines()
    assert all(line.startswith("error: ") for line in refusals)
    if lines is LINES:
        assert f"grpo_guard {__version__}" in done.stdout.splitlines()
        assert len(refusals) == 5
        assert refusals[2] == "error: optim.lr=abc is no number; give one, such as 0.0001"
    assert not list(tmp_path.iterdir())
