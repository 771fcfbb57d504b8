"""Processes that are started together end together, with one line."""

import os
import sys

import pytest

from grpo_guard.command import training as script
from grpo_guard.console import cli
from grpo_guard.console.errors import FAILED, REFUSED, RESUMABLE
from grpo_guard.console.launch import MESSAGES, is_launched, launch_processes
from grpo_guard.schema import ConfigError, RunError

ENDS = """
import os, sys, time
from grpo_guard.console.launch import leave_message
rank = int(os.environ["RANK"])
time.sleep(.5 * (1 - rank))
if {message!r}:
    leave_message(f"{message} {{rank}}")
sys.exit({code})
"""


def end(code, message):
    text = ENDS.format(code=code, message=message)
    return launch_processes([sys.executable, "-c", text], 2)


def test_the_first_line_is_the_cause():
    assert end(RESUMABLE, "after 3") == (RESUMABLE, "after 3 1")


def test_processes_without_a_line():
    assert end(5, "") == (5, "")
    assert end(0, "") == (0, "")


def test_a_launched_process_leaves_its_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(MESSAGES, str(tmp_path))
    assert is_launched()
    with pytest.raises(SystemExit) as left:
        cli.fail(REFUSED, "seed=0 is bad")
    assert left.value.code == REFUSED
    assert [path.read_text() for path in tmp_path.iterdir()] == ["seed=0 is bad"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("code", "message", "error", "line"),
    [
        (REFUSED, "seed=0 is bad", ConfigError, "seed=0 is bad"),
        (FAILED, "it broke", RunError, "it broke"),
        (FAILED, "", RunError, "its processes ended with code 1; see above"),
    ],
)
def test_the_line_of_the_processes_becomes_that_of_the_job(
    code, message, error, line, launched, monkeypatch
):
    monkeypatch.setattr(script, "launch_processes", lambda *_: (code, message))
    with pytest.raises(error, match=f"^{line}$"):
        script.launch(*launched)


def test_a_stop_of_the_processes_is_reported_once(launched, monkeypatch, capsys):
    monkeypatch.setattr(script, "launch_processes", lambda *_: (RESUMABLE, "after iteration 3"))
    with pytest.raises(SystemExit) as left:
        script.launch(*launched)
    assert left.value.code == RESUMABLE
    assert capsys.readouterr().err == "stopped: after iteration 3\n"


@pytest.fixture
def launched(monkeypatch):
    """Stand in for a job with one override; return its folder and processes."""
    from types import SimpleNamespace

    task = ["clipping=guard", "output=runs/x"]
    job = SimpleNamespace(overrides=SimpleNamespace(task=task))
    monkeypatch.setattr(script, "HydraConfig", SimpleNamespace(get=lambda: job))
    return "runs/clipping=guard, [a]", 2


def test_the_folder_is_quoted_for_the_processes(launched, monkeypatch):
    commands = []
    monkeypatch.setattr(
        script, "launch_processes", lambda command, _: (commands.append(command), (0, ""))[1]
    )
    script.launch(*launched)
    assert commands[0][3:] == [
        "clipping=guard",
        "output='runs/clipping=guard, [a]'",
        "hydra.mode=RUN",
    ]
    assert MESSAGES not in os.environ
