"""Runs a command as several processes of this machine that work together, as torchrun does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from grpo_guard.console.errors import FAILED, RESUMABLE
from grpo_guard.parallel.cores import granted_cores

MESSAGES = "GRPO_GUARD_MESSAGES"
"""Environment variable with a folder, in which processes leave the lines with which they end."""


def launch_processes(command: Sequence[str], processes: int) -> tuple[int, str]:
    """Start a command once per rank and wait; returns the exit code and the line that explains it.

    The processes fail together, and each has a line. The first one names the cause. The line is
    empty if none left any.
    """
    with tempfile.TemporaryDirectory() as folder:
        code = run_processes(command, processes, {MESSAGES: folder})
        first = min(Path(folder).iterdir(), default=None)
        return code, first.read_text(encoding="utf-8") if first else ""


def is_launched() -> bool:
    """Return whether another process of scripts/train.py has started this one."""
    return MESSAGES in os.environ


def leave_message(line: str) -> None:
    """Leave the line with which this process ends to the one that started it."""
    # All processes of a machine read the same clock, so the names sort by time.
    name = f"{time.monotonic_ns():020}_{os.getpid()}"
    (Path(os.environ[MESSAGES]) / name).write_text(line, encoding="utf-8")


def run_processes(
    command: Sequence[str], processes: int, variables: Mapping[str, str] | None = None
) -> int:
    """Start a command once per rank and wait; returns the first exit code that is not 0, else 0.

    `variables` are added to the environment of each process.
    """
    shared = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        # Otherwise each process would compute on all cores at once.
        "OMP_NUM_THREADS": os.environ.get(
            "OMP_NUM_THREADS", str(max(1, granted_cores() // processes))
        ),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(find_free_port()),
        **(variables or {}),
    }
    workers = []
    for rank in range(processes):
        environment = os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        workers.append(subprocess.Popen(command, env=environment))
    return wait_for_all(workers)


def find_free_port() -> int:
    """Return a port that is free at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_for_all(workers: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all processes; once one fails, kill the others.

    SIGTERM and SIGUSR1 are passed on. Returns the first exit code that is not 0, else 0; if
    processes only died of signals, returns 1.
    """

    def pass_on(number: int, frame: FrameType | None) -> None:
        for worker in workers:
            worker.send_signal(number)

    # A terminal sends Ctrl-C to all processes by itself, so SIGINT must not be passed on.
    handlers: dict[int, Any] = {
        signal.SIGINT: signal.SIG_IGN,
        signal.SIGTERM: pass_on,
        signal.SIGUSR1: pass_on,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    while any(worker.poll() is None for worker in workers):
        time.sleep(0.2)
        if any(worker.poll() not in (None, 0, RESUMABLE) for worker in workers):
            pass_on(signal.SIGKILL, None)
    for number, handler in before.items():
        signal.signal(number, handler)
    codes = [worker.wait() for worker in workers]
    exits = [code for code in codes if code > 0]
    if exits:
        return exits[0]
    return FAILED if any(codes) else 0
