"""Stopping on request: Ctrl-C, or a scheduler that wants its machine back."""

from __future__ import annotations

import shlex
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals that ask a run to stop; schedulers send SIGTERM, or SIGUSR1 ahead of a time limit."""


class Stopped(Exception):
    """A run stopped on request and saved its state. The message says how to continue it."""


class EndRequested(KeyboardInterrupt):
    """A scheduler asks this process to end, while no run listens."""


def end_on_request() -> None:
    """Let the signals of schedulers raise EndRequested, except while a Stop is open.

    Otherwise they would end the process at once, without a word, while a model is being loaded.
    """
    for number in SIGNALS:
        if number != signal.SIGINT:
            signal.signal(number, _request_end)


def _request_end(number: int, frame: FrameType | None) -> None:
    raise EndRequested(
        "no iteration was under way; the same command, with output= its folder if it has one,"
        " continues"
    )


class Stop:
    """Listens for signals while it is open.

    The first signal asks the run to stop after its iteration; a second Ctrl-C interrupts at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self.handlers_before = dict[int, Any]()

    def __enter__(self) -> Stop:
        # Python only lets the main thread set signal handlers; tests run in others.
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self.handlers_before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.handlers_before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def leave_if(self, stopping: bool, iterations: int, folder: Path, resume: str) -> None:
        """Raise Stopped if a run with this `resume` is stopping, after so many iterations."""
        if stopping:
            changes = [f"output={folder}", *(["resume=auto"] if resume != "auto" else [])]
            raise Stopped(
                f"after iteration {iterations}; the same command with {shlex.join(changes)}"
                " continues it"
            )
