"""A program goes on, and exits as it would, if nobody reads what it prints."""

import os
import subprocess
import sys

import pytest

from grpo_guard.console import cli

PROGRAM = """
import logging, os, signal, sys, time
from grpo_guard.console.streams import lasting_streams, outlive_terminal
outlive_terminal()
with lasting_streams():
    sys.stdin.read()  # until the reader has left
    for _ in range(3):
        print("number")
        print("display", file=sys.stderr)
        logging.warning("warning")
    os.write(2, b"a library")
    os.kill(os.getpid(), signal.SIGHUP)
    with open({file!r}, "w") as file:
        file.write(str(file.fileno()))
sys.exit(7)
"""
PICKLED = """
import pickle
from cloudpickle import dumps
from omegaconf import OmegaConf
from grpo_guard.console import cli
def main(cfg):
    print(cfg["x"])
pickle.loads(dumps(cli.job(main)))(OmegaConf.create({"x": 3}))
"""


@pytest.mark.parametrize("closed", ["left", "2>&-", "1>&-", "1>&- 2>&-"])
def test_a_program_outlives_its_reader(closed, tmp_path):
    file = tmp_path / "written"
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(file=str(file)))
    redirection = "" if closed == "left" else closed
    environment = os.environ | {"PYTHONPATH": str(cli.ROOT)}
    with subprocess.Popen(
        ["sh", "-c", f"exec {sys.executable} {program} {redirection}"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        if closed == "left":
            process.stdout.close()
        process.stdin.close()
        assert process.wait() == 7
    assert int(file.read_text()) > 2


def test_a_job_can_be_sent_to_another_process():
    """Launchers of multiruns pickle the job by value, as it is a function of the main module.

    Run in a process of its own: functions that these tests' type checks wrap cannot be pickled.
    """
    done = subprocess.run(
        [sys.executable, "-c", PICKLED], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("3\n", "")
