"""Being asked to stop: by Ctrl-C, by a scheduler that wants its machine back."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopped(Exception):
    """A run that stopped when asked, kept its state and can go on from there: one line that says so."""


class Stop:
    """Within it, the first signal asks the run to stop after its iteration; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.asked, self.before = False, dict[int, Any]()

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def obey(self, stopping: bool, iterations: int, folder: Path) -> None:
        """Raise Stopped if the run is to stop."""
        if stopping:
            raise Stopped(
                f"after iteration {iterations}, its state kept; the same command with output={folder} goes on"
            )
