"""Loggers receive a run's numbers and pictures; the run folder is the record of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from grpo_guard.metrics import Metrics
from grpo_guard.schema import record
from grpo_guard.types import Pictures


@record
class RunInfo:
    """What a logger knows about a run before it starts."""

    folder: Path
    """The run folder; it exists."""
    config: Mapping[str, Any]
    """The composed configuration."""
    iterations: int
    """Number of iterations that are planned."""
    plan: str = ""
    """What an iteration consists of, in one line for people."""
    start: int = 0
    """First iteration to be logged; what was logged of it and of later ones is discarded."""


@runtime_checkable
class Sink(Protocol):
    """An open destination for the numbers and pictures of one run."""

    def log(self, iteration: int, metrics: Metrics) -> None:
        """Record the metrics of an iteration."""

    def show(self, iteration: int, pictures: Pictures) -> None:
        """Record what an evaluation shows."""


def count_columns(pictures: int) -> int:
    """Return the columns of a grid of so many pictures, which is as square as possible."""
    return math.ceil(math.sqrt(pictures))


class _Silent:
    def log(self, iteration: int, metrics: Metrics) -> None:
        """Discard the metrics."""

    def show(self, iteration: int, pictures: Pictures) -> None:
        """Discard the pictures."""


SILENT: Sink = _Silent()
"""A sink that discards everything, for processes that do not log."""


@runtime_checkable
class Logger(Protocol):
    """The configuration of a sink."""

    def open(self, run: RunInfo) -> AbstractContextManager[Sink]:
        """Open a sink that is flushed and closed when the context exits, however the run ends."""
