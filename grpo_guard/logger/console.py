"""A progress display on the terminal."""

from __future__ import annotations

import errno
import io
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from jaxtyping import Float
from rich.console import Console as Terminal
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from grpo_guard.logger import RunInfo, Sink
from grpo_guard.metrics import Metrics
from grpo_guard.schema import component
from grpo_guard.types import ImageScores

HEADLINES = (
    "reward/total",
    "eval/proxy/",
    "eval/gold/exact",
    "eval/gold/clean",
    "throughput/images_per_s",
)
"""Beginnings of the metric keys that the display shows; a line has room for few."""


class _Nowhere(io.TextIOBase):
    """A stream that keeps nothing."""

    def write(self, text: str) -> int:
        return len(text)


class LastingStream:
    """A stream of text that falls silent, instead of raising, once nobody reads it.

    A reader that leaves (`| head -1`) otherwise raises BrokenPipeError, a closed terminal OSError,
    and a closed stream ValueError. None stands for a stream that was closed before Python started.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = _Nowhere() if stream is None else stream

    @classmethod
    def wrap(cls, stream: Any) -> LastingStream:
        """Return a stream that lasts; the same one if it does already."""
        return stream if isinstance(stream, cls) else cls(stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, or drop it; returns its length."""
        self._attempt("write", text)
        return len(text)

    def flush(self) -> None:
        """Write what is in the buffer, or drop it."""
        self._attempt("flush")

    def isatty(self) -> bool:
        """Return whether the stream is a terminal; a closed one is none."""
        return not self._stream.closed and self._stream.isatty()

    def _attempt(self, method: str, *arguments: str) -> None:
        try:
            getattr(self._stream, method)(*arguments)
        except ValueError:
            if not self._stream.closed:
                raise
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EIO):
                self._redirect_to_nowhere()

    def _redirect_to_nowhere(self) -> None:
        """Give what is in the buffer, and what libraries write there, a place to go."""
        with suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())


class _Headlines:
    """The latest value of each headline metric.

    Evaluations are rare, so their values stay on display.
    """

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}

    def update(self, metrics: Metrics) -> str:
        """Take new values and return the text to display."""
        self.latest |= {k: m.value for k, m in metrics.items() if k.startswith(HEADLINES)}
        return "  ".join(f"{_shorten(k)} {v:.3g}" for k, v in self.latest.items())


def _shorten(key: str) -> str:
    return (
        key.removeprefix("eval/")
        .replace("reward/total", "reward")
        .replace("throughput/images_per_s", "images/s")
    )


class _Bar:
    def __init__(self, progress: Progress, run: RunInfo) -> None:
        self.progress = progress
        self.headlines = _Headlines()
        self.task = progress.add_task(run.folder.name, total=run.iterations, news="")

    def log(self, iteration: int, metrics: Metrics) -> None:
        done = min(iteration + 1, int(self.progress.tasks[self.task].total or 0))
        self.progress.update(self.task, completed=done, news=self.headlines.update(metrics))

    def show(
        self,
        iteration: int,
        images: Float[Tensor, "N 3 H W"],
        captions: Sequence[str],
        image_scores: Sequence[ImageScores],
    ) -> None:
        """Show nothing: a terminal has no pictures."""


class _Lines:
    def __init__(self, run: RunInfo) -> None:
        self.run = run
        self.stream = LastingStream.wrap(sys.stderr)
        self.headlines = _Headlines()
        self.start = time.perf_counter()

    def log(self, iteration: int, metrics: Metrics) -> None:
        done = min(iteration + 1, self.run.iterations)
        left = (time.perf_counter() - self.start) / done * (self.run.iterations - done)
        remaining = f"left {left // 60:.0f}:{left % 60:02.0f}"
        news = f"{done}/{self.run.iterations}  {self.headlines.update(metrics)}  {remaining}"
        self.stream.write(f"{self.run.folder.name}  {news}\n")
        self.stream.flush()

    def show(
        self,
        iteration: int,
        images: Float[Tensor, "N 3 H W"],
        captions: Sequence[str],
        image_scores: Sequence[ImageScores],
    ) -> None:
        """Show nothing: a terminal has no pictures."""


@component
class Console:
    """Show the iteration, the headline metrics and the time left on standard error.

    If standard error is closed or nobody reads it, the run goes on without this display.
    """

    live: bool
    """True: a progress bar on a terminal, and one line per iteration elsewhere. False: always
    lines, as for several runs that share a terminal.
    """

    @contextmanager
    def open(self, run: RunInfo) -> Iterator[Sink]:
        """Open the display."""
        # rich's own answer to a broken pipe is to end the process.
        terminal = Terminal(file=cast(TextIO, LastingStream.wrap(sys.stderr)))
        if not (self.live and terminal.is_terminal):
            yield _Lines(run)
            return
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[news]}"),
            console=terminal,
        )
        with progress:
            yield _Bar(progress, run)
