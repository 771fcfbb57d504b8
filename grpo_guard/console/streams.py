"""Standard output and standard error that outlive whoever reads them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from grpo_guard.lasting import LastingStream


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Let a process go on if its terminal closes or its pipe is no longer read.

    Whatever prints, logs or draws then writes to nowhere instead of raising.
    """
    _reopen_closed()
    before = sys.stdout, sys.stderr
    sys.stdout = LastingStream.wrap(sys.stdout)
    sys.stderr = LastingStream.wrap(sys.stderr)
    try:
        yield
    finally:
        # What is left in a buffer would fail while Python exits, and change the exit code.
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def outlive_terminal() -> None:
    """Go on if the terminal closes; processes that this one starts do so too."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _reopen_closed() -> None:
    """Open standard streams that were closed (`2>&-`) to nowhere.

    Otherwise the next file that is opened gets the number of the stream, and libraries write their
    messages into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, number)
            if nowhere > 2:
                os.close(nowhere)
