"""One process holds a run folder; it is free again when that process ends, however it ends."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_guard.lifecycle.lock import LOCK, lock_folder
from grpo_guard.schema import ConfigError

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from grpo_guard.lifecycle.lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(300)
"""


@pytest.fixture
def holder(tmp_path):
    """Start a process that holds the folder."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def hold(folder):
    with lock_folder(folder):
        return json.loads((folder / LOCK).read_text())


def write_holder(folder, **changes):
    holder = {"host": socket.gethostname(), "process": os.getpid(), "started": "1"} | changes
    (folder / LOCK).write_text(json.dumps(holder))


def test_a_second_process_is_refused_while_the_first_lives(tmp_path, holder):
    before = (tmp_path / LOCK).read_text()
    message = f"output={tmp_path} is being written by process {holder.pid}; wait"
    with pytest.raises(ConfigError, match=re.escape(message)):
        hold(tmp_path)
    assert (tmp_path / LOCK).read_text() == before


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, holder):
    """It is a zombie here, because the test has not waited for it: as under many containers."""
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    assert hold(tmp_path)["process"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


def test_the_lock_of_a_process_that_is_gone_is_taken_over(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert hold(tmp_path)["process"] == os.getpid()


def test_a_process_number_that_is_used_again_holds_nothing(tmp_path):
    write_holder(tmp_path)
    assert hold(tmp_path)["started"] != "1"


def test_another_machine_cannot_be_checked(tmp_path):
    write_holder(tmp_path, host="node7", process=12)
    message = f"is held by process 12 on node7, .* remove {re.escape(str(tmp_path / LOCK))}, else"
    with pytest.raises(ConfigError, match=message):
        hold(tmp_path)


REQUEUED = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}
ARRAY = {"SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "3"}


@pytest.mark.parametrize(
    ("variables", "holder"),
    [
        (REQUEUED, {"job": "7", "restarts": "0"}),
        (REQUEUED | ARRAY, {"job": "40_3", "restarts": "0"}),
    ],
)
def test_a_job_that_slurm_starts_again_on_another_node_goes_on(
    tmp_path, monkeypatch, variables, holder
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    write_holder(tmp_path, host="node7", **holder)
    taken = hold(tmp_path)
    assert (taken["job"], taken["restarts"]) == (holder["job"], "1")


@pytest.mark.parametrize(
    "holder",
    [
        {"job": "8", "restarts": "0"},  # another job
        {"job": "7", "restarts": "1"},  # another step of this start, on another node
        {"job": "", "restarts": "0"},  # of no job
        {},  # of an older version
    ],
)
def test_other_processes_of_another_node_are_refused(tmp_path, monkeypatch, holder):
    for name, value in REQUEUED.items():
        monkeypatch.setenv(name, value)
    write_holder(tmp_path, host="node7", **holder)
    with pytest.raises(ConfigError, match=r"is held by process .* on node7"):
        hold(tmp_path)


@pytest.mark.parametrize("content", ["", '{"host": "no', "[]", '{"process": "x"}'])
def test_a_lock_without_a_name_is_free(tmp_path, content):
    (tmp_path / LOCK).write_text(content)
    assert hold(tmp_path)["process"] == os.getpid()


def test_a_lock_goes_when_a_run_fails(tmp_path):
    with pytest.raises(RuntimeError), lock_folder(tmp_path):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_the_lock_of_another_process_stays(tmp_path):
    """Somebody removed this process's lock by hand, and another process took the folder."""
    with lock_folder(tmp_path):
        write_holder(tmp_path, process=12)
    assert json.loads((tmp_path / LOCK).read_text())["process"] == 12
