"""Processes of this machine that work together, as torchrun would start them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from types import FrameType

from lib import cli


def spread(command: Sequence[str], processes: int) -> int:
    """Run a command that many times, each with its rank, and wait; the code of the first that fails, else 0."""
    shared = {
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    ranks = [
        os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        for rank in range(processes)
    ]
    return together([subprocess.Popen(command, env=environment) for environment in ranks])


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port: int = door.getsockname()[1]
        return port


def together(workers: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all; the first that fails ends the others. A signal to this process is passed on."""

    def tell(number: int, frame: FrameType | None) -> None:
        for worker in workers:
            worker.send_signal(number)

    handlers = {
        signal.SIGINT: signal.SIG_IGN,
        signal.SIGTERM: tell,
        signal.SIGUSR1: tell,
    }  # Ctrl-C reaches all anyway
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    while any(worker.poll() is None for worker in workers):
        time.sleep(0.2)
        if any(worker.poll() not in (None, 0, cli.RESUMABLE) for worker in workers):
            tell(signal.SIGKILL, None)
    for number, handler in before.items():
        signal.signal(number, handler)
    codes = [worker.wait() for worker in workers]
    return next((code for code in codes if code > 0), 1 if any(codes) else 0)
