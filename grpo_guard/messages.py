"""Messages of one line: what an error says, and a warning that is given once.

This module imports no torch: the command line uses it before anything is loaded.
"""

from __future__ import annotations

import logging
from functools import cache

_log = logging.getLogger(__name__)


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or the name of its type if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def one_line(error: BaseException) -> str:
    """Return all that an error says as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


@cache
def warn_once(line: str) -> None:
    """Log a warning once per process, however often it is given."""
    _log.warning(line)
